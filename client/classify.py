#!/usr/bin/env python
"""Names what is on pictures, by asking an MLServer that serves an image classifier."""

import argparse
import csv
import glob
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from local import unbroken
from transport import ClientError, Encoding, Grpc, Prediction, Rest, ServerError, Transport

URL, MODEL = "http://localhost:8080", "tinyvit"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
BAR = 24
"""Characters of a bar that stands for certainty."""
INTERRUPTED = 130

EPILOG = """\
examples:
  python client/classify.py imgs/cat.jpg
  python client/classify.py --top-k 3 --encoding image imgs/cat.jpg imgs/coffee.jpg
  python client/classify.py --jobs 8 --format csv imgs > labels.csv
  python client/classify.py --json 'imgs/*.jpg'
  python client/classify.py --grpc localhost:8081 --encoding image imgs/coffee.jpg

Exit status: 0 if every picture was named, 1 if one was not, 2 for a wrong call, 130 after Ctrl-C.
"""


def classify(
    picture: str | Path,
    url: str = URL,
    model: str = MODEL,
    top_k: int | None = None,
    encoding: Encoding = "array",
) -> list[Prediction]:
    """The labels of one picture, best first: the function for notebooks.

    `encoding` sends the pixels as a NumPy array, or with `image` the file's bytes as they are.
    Raises ClientError with one sentence for a picture that is none, and for a server that is
    down, not ready or refuses.
    """
    return Rest(url, model).classify(Path(picture), top_k, encoding)


class Result:
    """What came of one picture: predictions, or a sentence why not."""

    def __init__(self, picture: Path, answer: "Future[list[Prediction]]") -> None:
        self.picture = picture
        self._answer = answer
        self.predictions: list[Prediction] = []
        self.error: str | None = None

    def wait(self) -> "Result":
        """Returns when the answer is there; raises ServerError where no other will come."""
        try:
            self.predictions = self._answer.result()
        except ServerError:
            raise
        except ClientError as error:
            self.error = str(error)
        return self


def results(
    transport: Transport, pictures: Iterable[Path], options: argparse.Namespace
) -> Iterator[Result]:
    """In the order of the pictures, with `options.jobs` requests on their way at a time and no
    more than twice as many answers held."""
    pictures = iter(pictures)
    with ThreadPoolExecutor(options.jobs) as pool:

        def begin(count: int) -> list[Result]:
            return [
                Result(p, pool.submit(transport.classify, p, options.top_k, options.encoding))
                for p in islice(pictures, count)
            ]

        waiting = deque(begin(2 * options.jobs))
        try:
            while waiting:
                yield waiting.popleft().wait()
                waiting.extend(begin(1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def find_pictures(names: Sequence[str]) -> list[Path]:
    """The files that names, folders and globs stand for; raises ClientError for none."""
    return [picture for name in names for picture in _expand(name)]


def _expand(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif path.exists() or not glob.has_magic(name):
        return [path]
    else:
        found = sorted(Path(match) for match in glob.glob(name, recursive=True))
    if not found:
        raise ClientError(f"There is no picture in {name}.")
    return found


class Writer(Protocol):
    """Puts results on standard output as they come."""

    def begin(self, facts: dict[str, Any]) -> None: ...
    def write(self, result: Result) -> None: ...
    def end(self) -> None: ...


class Table:
    """For people: labels with scores and bars."""

    def __init__(self) -> None:
        try:
            "█".encode(sys.stdout.encoding or "ascii")
            self._block = "█"
        except UnicodeEncodeError:
            self._block = "#"

    def begin(self, facts: dict[str, Any]) -> None:
        what = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "fallback")
        print(f"Served: {what}")
        if facts.get("fallback"):
            print("NOTE: these are fallback weights; the ones asked for could not be had.")

    def write(self, result: Result) -> None:
        if result.error:
            return
        print(f"\n{result.picture}")
        for label, score in result.predictions:
            bar = self._block * max(1, round(score * BAR))
            print(f"{score:8.1%}  {bar:{BAR}}  {label}")

    def end(self) -> None:
        pass


class Json:
    """One document: a list with an object for each picture, errors included."""

    def __init__(self) -> None:
        self._separator = "[\n"

    def begin(self, facts: dict[str, Any]) -> None:
        pass

    def write(self, result: Result) -> None:
        content: dict[str, Any] = {"image": str(result.picture)}
        if result.error:
            content["error"] = result.error
        else:
            content["predictions"] = [p._asdict() for p in result.predictions]
        print(self._separator + json.dumps(content), end="")
        self._separator = ",\n"

    def end(self) -> None:
        print("[]" if self._separator == "[\n" else "\n]")


class Csv:
    """A line for each label."""

    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")

    def begin(self, facts: dict[str, Any]) -> None:
        self._writer.writerow(["image", "rank", "label", "score"])

    def write(self, result: Result) -> None:
        for rank, (label, score) in enumerate(result.predictions, 1):
            self._writer.writerow([result.picture, rank, label, f"{score:.6f}"])

    def end(self) -> None:
        pass


WRITERS: dict[str, Callable[[], Writer]] = {"table": Table, "json": Json, "csv": Csv}


def run(options: argparse.Namespace) -> int:
    """Classifies what the options name; returns the exit status, raises ClientError."""
    pictures = find_pictures(options.pictures)
    transport: Transport = (
        Grpc(options.grpc, options.model, options.retries)
        if options.grpc
        else Rest(options.url, options.model, options.retries, options.jobs)
    )
    writer: Writer = WRITERS[options.format]()
    writer.begin(transport.facts())
    failed = 0
    try:
        # disable=None: no bar unless standard error is a terminal
        quiet = None if len(pictures) > 1 else True
        with tqdm(total=len(pictures), unit="picture", file=sys.stderr, disable=quiet) as bar:
            for result in results(transport, pictures, options):
                with unbroken(), bar.external_write_mode():
                    writer.write(result)
                    if result.error:
                        failed += 1
                        print(result.error, file=sys.stderr)
                bar.update()
    finally:
        writer.end()
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="file, folder (searched through) or glob")
    add("--url", "-u", default=URL, help="the server (default: %(default)s)")
    add("--model", "-m", default=MODEL, help="the model's name (default: %(default)s)")
    add("--top-k", "-k", type=_positive, help="labels a picture (default: the server's, 5)")
    add(
        "--encoding",
        "-e",
        choices=["array", "image"],
        default="array",
        help="send pixels by NumpyCodec, or the file as it is, which is smaller and faster "
        "(default: %(default)s)",
    )
    add("--format", "-f", choices=list(WRITERS), default="table", help="default: %(default)s")
    add("--json", action="store_const", const="json", dest="format", help="--format json")
    add("--jobs", "-j", type=_positive, default=1, help="requests at a time (default: 1)")
    add("--retries", type=int, default=5, help="on 503 and broken connections (default: 5)")
    add("--grpc", metavar="HOST:PORT", help="over gRPC, as in --grpc localhost:8081")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main() -> int:
    options = parse()
    try:
        return run(options)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Interrupted; what is above was done.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `| head`
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
