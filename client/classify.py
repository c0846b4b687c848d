#!/usr/bin/env python
"""Classify images with an MLServer that serves an image classifier."""

import argparse
import csv
import io
import json
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a file; imported, it is client.classify
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.images import ArgumentError, ClientError, ImageSource, NamedImage, find_images
from client.transport import Answer, Encoding, Grpc, Prediction, Rest, ServerError, Transport

URL, MODEL = "http://localhost:8080", "tinyvit"
BAR = 24  # width of the bar for a score of 1, in characters

EPILOG = """\
examples:
  python client/classify.py imgs/cat.jpg
  python client/classify.py --top-k 3 --encoding image imgs/cat.jpg imgs/coffee.jpg
  python client/classify.py --jobs 8 --format csv imgs > labels.csv
  python client/classify.py --json 'imgs/*.jpg'
  python client/classify.py --grpc localhost:8081 --encoding image imgs/coffee.jpg
  python client/classify.py --embeddings imgs.npz imgs

Exit status: 0 all images classified, 1 an image failed, 2 invalid arguments, 130 Ctrl-C
"""


def classify(
    image: ImageSource,
    url: str = URL,
    model: str = MODEL,
    top_k: int | None = None,
    encoding: Encoding = "array",
) -> list[Prediction]:
    """Return the labels and scores of one image, best first: the function for notebooks.

    The encoding `array` sends pixels, `image` sends a file, which is smaller and faster.
    Raises ArgumentError (a ValueError) for an invalid call, and ClientError for an image that
    cannot be read and for a server that is down, is not ready or refuses the request.
    """
    return Rest(url, model).ask(image, top_k, encoding).predictions


@dataclass
class Result:
    """The answer for one image, or the reason why there is none."""

    image: str
    answer: Answer = Answer([])
    error: str | None = None


def ask_all(
    model: Transport, images: Iterable[NamedImage], options: argparse.Namespace
) -> Iterator[Result]:
    """Yield a result for each image, in order, with `options.jobs` requests in flight.

    At most twice as many results are held. After a ServerError nothing more is sent.
    """
    server_errors: list[ServerError] = []
    params = options.top_k, options.encoding, options.embeddings is not None

    def result_of(item: NamedImage) -> Result:
        name, image = item
        try:
            if isinstance(image, ClientError):
                raise image
            if server_errors:
                raise server_errors[0]
            return Result(name, model.ask(image, *params))
        except ClientError as error:
            if isinstance(error, ServerError):
                server_errors.append(error)
            return Result(name, error=str(error))

    with ThreadPoolExecutor(options.jobs) as pool:
        futures: deque[Future[Result]] = deque()
        try:
            for image in images:
                futures.append(pool.submit(result_of, image))
                if len(futures) == 2 * options.jobs:
                    yield futures.popleft().result()
            yield from (future.result() for future in futures)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_table(results: Iterable[Result], facts: dict[str, Any]) -> None:
    """Write labels with scores and bars, for people."""
    served = [f"{name} {facts[name]}" for name in facts if name not in ("fallback", "notice")]
    if served:
        print("Served: " + ", ".join(served))
    if "notice" in facts:
        print(f"NOTE: {facts['notice']}")
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    for result in results:
        if not result.error:
            print(f"\n{result.image}")
        for label, score in result.answer.predictions:
            print(f"{score:8.1%}  {block * max(1, round(score * BAR)):{BAR}}  {label}")


def write_json(results: Iterable[Result], facts: dict[str, Any]) -> None:
    """Write one document: a list with an object for each image, errors included."""
    separator = "[\n"
    try:
        for result in results:
            content: dict[str, Any] = {"image": result.image}
            if result.error:
                content["error"] = result.error
            else:
                content["predictions"] = [p._asdict() for p in result.answer.predictions]
            print(separator + json.dumps(content), end="")
            separator = ",\n"
    finally:  # valid JSON after Ctrl-C, too
        print("[]" if separator == "[\n" else "\n]")


def write_csv(results: Iterable[Result], facts: dict[str, Any]) -> None:
    """Write a row for each label, and one with the error for each image that failed."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "score", "error"])
    for result in results:
        for rank, (label, score) in enumerate(result.answer.predictions, 1):
            writer.writerow([result.image, rank, label, f"{score:.6f}", ""])
        if result.error:
            writer.writerow([result.image, "", "", "", result.error])


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}


def save_embeddings(path: Path, results: Sequence[Result]) -> None:
    """Write an .npz file with arrays `images`, `embeddings` (float32 `[N,D]`) and top-1 `labels`.

    Raises ClientError.
    """
    import numpy as np

    images = [result.image for result in results]
    embeddings = np.array([result.answer.embedding for result in results], np.float32)
    labels = [result.answer.predictions[0].label for result in results]
    try:
        with open(path, "wb") as file:
            np.savez(file, images=images, embeddings=embeddings, labels=labels)
    except OSError as error:
        raise ClientError(f"Cannot write {path}: {error.strerror}.") from None


def progress_bar(total: int) -> Any:
    """Return a tqdm bar for a terminal, or None without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="image", leave=False, disable=total == 1 or None)


def run(options: argparse.Namespace) -> int:
    """Classify the images and return the exit status; raises ClientError."""
    if options.encoding == "array" or options.embeddings:
        import numpy  # noqa: F401  # fail before anything is sent
    if options.embeddings and options.embeddings.is_dir():
        raise ArgumentError(f"Cannot write {options.embeddings}: it is a folder.")
    if options.embeddings and not options.embeddings.absolute().parent.is_dir():
        raise ArgumentError(f"Cannot write {options.embeddings}: its folder does not exist.")
    images = list(find_images(options.images))
    model: Transport = Rest(options.url, options.model, options.retries, options.jobs)
    if options.grpc:
        model = Grpc(options.grpc, options.model, options.retries)
    facts = model.facts()
    bar = progress_bar(len(images))
    errors: list[str] = []
    embedded: list[Result] = []

    def results() -> Iterator[Result]:
        """Yield each result to the writer, then print its error and count it."""
        for result in ask_all(model, images, options):
            with bar.external_write_mode() if bar else nullcontext():
                yield result
                sys.stdout.flush()
                if result.error and result.error not in errors[-1:]:  # a server that is down: once
                    print(result.error, file=sys.stderr)
                errors.extend([result.error] if result.error else [])
                embedded.extend([result] if result.answer.embedding else [])
                if bar:
                    bar.update()
            if interrupts:
                raise KeyboardInterrupt

    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> None:
        """End after the next result, and at once if Ctrl-C is pressed again."""
        interrupts.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, interrupt)
    try:
        WRITERS[options.format](results(), facts)
    finally:
        if bar:
            bar.close()
        if embedded:
            save_embeddings(options.embeddings, embedded)
    return 1 if errors else 0


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=layout)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image file, folder (with subfolders) or glob")
    add("--url", "-u", default=URL, help="server URL (default: %(default)s)")
    add("--model", "-m", default=MODEL, help="name of the model (default: %(default)s)")
    add("--top-k", "-k", type=int, help="labels per image (default: the server's)")
    encodings = get_args(Encoding)
    add("--encoding", "-e", choices=encodings, default="array", help="send pixels or the file")
    add("--format", "-f", choices=list(WRITERS), default="table", help="default: %(default)s")
    add("--json", action="store_const", const="json", dest="format", help="same as --format json")
    add("--embeddings", type=Path, metavar="FILE.npz", help="also save the embeddings")
    add("--jobs", "-j", type=int, default=1, help="concurrent requests (default: %(default)s)")
    add("--retries", type=int, default=5, help="after 503 or a lost connection (%(default)s)")
    add("--grpc", metavar="HOST:PORT", help="use gRPC instead of HTTP")
    options = parser.parse_args()
    if options.jobs < 1 or options.retries < 0 or (options.top_k is not None and options.top_k < 1):
        parser.error("--top-k and --jobs must be at least 1, --retries at least 0.")
    return options


def main() -> int:
    options = parse()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files in another encoding
    try:
        return run(options)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except KeyboardInterrupt:
        print("Interrupted: the results above are complete.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        hint = "`pip install numpy pillow` (--grpc: mlserver), or use --encoding image alone"
        print(f"Module {error.name} is not installed: {hint}.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # such as `| head`
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"The results cannot be written: {error.strerror}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
