#!/usr/bin/env python
"""Names what is on pictures, by asking an MLServer that serves an image classifier."""

import argparse
import csv
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

if not __package__:  # run as a file; imported, it is client.classify
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.local import unbroken
from client.pictures import (
    ArgumentError,
    ClientError,
    NoPicture,
    Picture,
    check_pixels,
    find_pictures,
    need,
)
from client.transport import (
    ENCODINGS,
    Answer,
    Encoding,
    Grpc,
    Prediction,
    Rest,
    ServerError,
    Transport,
    check_encoding,
    check_target,
    check_top_k,
    check_url,
)

URL, MODEL = "http://localhost:8080", "tinyvit"
APART = {"fallback", "notice"}
"""Facts of a model that are told in a sentence of their own."""
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
  python client/classify.py --embeddings imgs.npz imgs

Exit status: 0 if every picture was named, 1 if one was not, 2 for a wrong call, 130 after Ctrl-C.
"""


def classify(
    picture: Picture,
    url: str = URL,
    model: str = MODEL,
    top_k: int | None = None,
    encoding: Encoding = "array",
) -> list[Prediction]:
    """The labels of one picture, best first: the function for notebooks.

    `picture` is a path, an image file's bytes, a PIL image, or pixels `[H,W]` or `[H,W,C]`, whole
    numbers from 0 to 255.
    `encoding` sends pixels as they are, or with `image` a file, which is smaller.
    Raises ArgumentError, which is also a ValueError, for a wrong call, and ClientError with one
    sentence for a picture that is none and for a server that is down, not ready or refuses.
    """
    check_encoding(encoding)
    top_k = check_top_k(top_k)
    return Rest(url, model).classify(picture, top_k, encoding)


class Result:
    """What came of one picture: predictions, or a sentence why not."""

    def __init__(self, picture: Path | NoPicture, answer: "Future[Answer]") -> None:
        self.picture = picture
        self._answer = answer
        self.predictions: list[Prediction] = []
        self.embedding: list[float] | None = None
        self.error: str | None = None

    def wait(self) -> "Result":
        """Returns when the answer is there, or the reason why none will come."""
        try:
            self.predictions, self.embedding = self._answer.result()
        except ClientError as error:
            self.error = str(error)
        return self


def results(
    transport: Transport, pictures: Iterable[Path | NoPicture], options: argparse.Namespace
) -> Iterator[Result]:
    """In the order of the pictures, with `options.jobs` requests on their way at a time and no
    more than twice as many answers held. After a ServerError nothing more is sent: it is what came
    of all that are left."""
    pictures = iter(pictures)
    down: list[str] = []

    def ask(picture: Path | NoPicture) -> Answer:
        if isinstance(picture, NoPicture):
            raise picture.error
        if down:
            raise ServerError(down[0])
        wanted = options.top_k, options.encoding, options.embeddings is not None
        try:
            return transport.ask(picture, *wanted)
        except ServerError as error:
            down.append(str(error))
            raise

    with ThreadPoolExecutor(options.jobs) as pool:

        def begin(count: int) -> list[Result]:
            return [Result(p, pool.submit(ask, p)) for p in islice(pictures, count)]

        waiting = deque(begin(2 * options.jobs))
        try:
            while waiting:
                yield waiting.popleft().wait()
                waiting.extend(begin(1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
        told = {name: value for name, value in facts.items() if name not in APART}
        if told:
            print("Served: " + ", ".join(f"{name} {value}" for name, value in told.items()))
        if "notice" in facts:
            print(f"NOTE: {facts['notice']}")

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
    """A line for each label, and one for each picture that failed, with the reason."""

    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")

    def begin(self, facts: dict[str, Any]) -> None:
        self._writer.writerow(["image", "rank", "label", "score", "error"])

    def write(self, result: Result) -> None:
        for rank, (label, score) in enumerate(result.predictions, 1):
            self._writer.writerow([result.picture, rank, label, f"{score:.6f}", ""])
        if result.error:
            self._writer.writerow([result.picture, "", "", "", result.error])

    def end(self) -> None:
        pass


WRITERS: dict[str, Callable[[], Writer]] = {"table": Table, "json": Json, "csv": Csv}


class Embeddings:
    """Gathers what the pictures are told by, for an .npz file of arrays, row for row: `images`
    (names), `embeddings` float32 `[N,D]` and `labels`, the best of each."""

    def __init__(self, path: Path | None) -> None:
        """Raises ArgumentError where NumPy is missing."""
        if path:
            need("Embeddings", "labels alone do without", "numpy")
        self._path = path
        self._rows: list[tuple[str, list[float], str]] = []

    def add(self, result: Result) -> None:
        if result.embedding is not None:
            self._rows.append((str(result.picture), result.embedding, result.predictions[0].label))

    def save(self) -> None:
        """Writes what there is; raises ClientError."""
        if self._path is None or not self._rows:
            return
        import numpy as np

        images, embeddings, labels = zip(*self._rows, strict=True)
        try:
            with open(self._path, "wb") as file:
                np.savez(
                    file,
                    images=np.array(images),
                    embeddings=np.array(embeddings, np.float32),
                    labels=np.array(labels),
                )
        except OSError as error:
            raise ClientError(f"{self._path} cannot be written: {error.strerror}.") from None


class Progress:
    """`12/40 pictures` in the last line of a terminal; nothing where standard error is none."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = total > 1 and sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self._show(f"0/{self._total} pictures")
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Makes room for what is printed about one picture, and counts it."""
        self._show("")
        yield
        sys.stdout.flush()
        self._done += 1
        self._show(f"{self._done}/{self._total} pictures")

    def _show(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> int:
    """Classifies what the options name; returns the exit status, raises ClientError."""
    if options.encoding == "array":
        check_pixels()
    embeddings = Embeddings(options.embeddings)
    pictures = find_pictures(options.pictures)
    transport: Transport = (
        Grpc(options.grpc, options.model, options.retries)
        if options.grpc
        else Rest(options.url, options.model, options.retries, options.jobs)
    )
    writer: Writer = WRITERS[options.format]()
    writer.begin(transport.facts())
    failed, told = 0, None
    try:
        with Progress(len(pictures)) as progress:
            for result in results(transport, pictures, options):
                with unbroken(), progress.step():
                    writer.write(result)
                    embeddings.add(result)
                    failed += bool(result.error)
                    if result.error not in (None, told):  # of a server that is down, once
                        print(result.error, file=sys.stderr)
                    told = result.error
    finally:
        writer.end()
        embeddings.save()
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="file, folder (searched through) or glob")
    add("--url", "-u", type=_checked(check_url), default=URL, help="server (default: %(default)s)")
    add("--model", "-m", default=MODEL, help="the model's name (default: %(default)s)")
    add("--top-k", "-k", type=_positive, help="labels a picture (default: the server's, 5)")
    add(
        "--encoding",
        "-e",
        choices=ENCODINGS,
        default="array",
        help="send pixels, or the file as it is, which is smaller and faster "
        "(default: %(default)s)",
    )
    add("--format", "-f", choices=list(WRITERS), default="table", help="default: %(default)s")
    add("--json", action="store_const", const="json", dest="format", help="--format json")
    add(
        "--embeddings",
        type=Path,
        metavar="FILE.npz",
        help="also write the features that the pictures are told by, to find similar ones",
    )
    add("--jobs", "-j", type=_positive, default=1, help="requests at a time (default: 1)")
    add("--retries", type=_natural, default=5, help="on 503 and broken connections (default: 5)")
    add(
        "--grpc",
        type=_checked(check_target),
        metavar="HOST:PORT",
        help="over gRPC, as in --grpc localhost:8081",
    )
    return parser.parse_args(arguments)


def _checked(check: Callable[[str], str]) -> Callable[[str], str]:
    """A check of the client's as argparse wants it."""

    def checked(text: str) -> str:
        try:
            return check(text)
        except ArgumentError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _positive(text: str) -> int:
    return _at_least(1, text)


def _natural(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number, {least} or more.")
    return int(text)


def _is_interrupt(error: BaseException) -> bool:
    """Also where it came just when a future's lock changed hands: then releasing that fails."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def main() -> int:
    options = parse()
    try:
        return run(options)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except (KeyboardInterrupt, RuntimeError) as error:
        if not _is_interrupt(error):
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Interrupted; what is above was done.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `| head`
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
