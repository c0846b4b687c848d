"""Valid, invalid, big and abandoned requests from many clients; every response is checked.

    MINUTES=30 python -m benchmarks.soak [--clients N]

Another model in the same server is checked too. Some of the invalid requests are decode bombs.
Prints a line a minute and the totals; the exit status is 1 if a response was wrong or missing.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path

import grpc
import numpy as np
import requests
from PIL import Image

from benchmarks.networks import ROOT
from benchmarks.servers import memory
from client.local import LocalServer, serving
from tests.support import bombs
from tests.support.binary_tensors import elements, strings_of
from tests.support.clients import body, encoded, message, stub, tensor

TIMEOUT = 120
"""Seconds after which a response counts as missing."""

TOLERANCE = 1e-3
"""Between scores of one image in batches of different sizes."""

MODEL = "/v2/models/tinyvit"
STATUS = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.UNAVAILABLE: 503}
"""HTTP status of each gRPC status that is expected."""

Ranking = tuple[list[str], list[float]]
"""Labels and scores of one image."""

Outcome = list[Ranking] | int
"""What a request gets: rankings, or an error's HTTP status."""


class Client:
    """One client, over REST and gRPC."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._session = requests.Session()
        self._stub = stub(server)

    def post(self, path: str, data: bytes, **headers: str) -> Outcome:
        """Send any body."""
        url = self._server.url + path
        response = self._session.post(url, data, headers=headers, timeout=TIMEOUT)
        if response.status_code != 200:
            return response.status_code
        content = response.json()
        if isinstance(content, list):
            return [([e["label"] for e in content], [e["score"] for e in content])]
        labels, scores = content["outputs"][0]["data"], content["outputs"][-1]["data"]
        return [(labels[i : i + 5], scores[i : i + 5]) for i in range(0, len(labels), 5)]

    def classify(self, file: bytes) -> Outcome:
        """Send an image file as the body."""
        return self.post(f"{MODEL}/classify", file)

    def infer(self, *values: object, model: str = "tinyvit") -> Outcome:
        """Send one tensor as JSON; `values` are those of `tensor`."""
        request = json.dumps(body(tensor(*values))).encode()
        headers = {"Content-Type": "application/json"}
        return self.post(f"/v2/models/{model}/infer", request, **headers)

    def files(self, *files: bytes) -> Outcome:
        """Send encoded images as JSON."""
        return self.infer([tensor(file)["data"][0] for file in files])

    def pixels(self, pixels: np.ndarray) -> Outcome:
        """Send an array as JSON."""
        return self.infer(pixels.ravel().tolist(), list(pixels.shape), "UINT8")

    def grpc(self, shape: list[int], datatype: str, raw: bytes) -> Outcome:
        """Send a raw tensor over gRPC."""
        try:
            response = self._stub.ModelInfer(message(shape, datatype, raw=[raw]), timeout=TIMEOUT)
        except grpc.RpcError as error:
            return STATUS.get(error.code(), 500)
        labels, scores = response.raw_output_contents
        return [(strings_of(labels), np.frombuffer(scores, np.float32).tolist())]

    def hang_up(self, path: str, data: bytes, share: float) -> Outcome:
        """Send the first `share` of a request and close the connection."""
        head = f"POST {MODEL}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        address = ("127.0.0.1", self._server.http_port)
        with socket.create_connection(address, TIMEOUT) as connection:
            connection.sendall(head.encode() + data[: int(len(data) * share)])
        return []


Send = Callable[[Client], Outcome]


def images() -> list[Image.Image]:
    """Return photographs and variants of them: no two have the same response."""
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "imgs").glob("*.jpg"))]
    variants = [photo.resize((300, 220)) for photo in photos]
    variants += [photo.rotate(90, expand=True).resize((200, 260)) for photo in photos]
    variants += [photo.crop((0, 0, photo.width // 2, photo.height // 2)) for photo in photos]
    return variants


def valid_requests() -> dict[str, Send]:
    """Return every way to send an image, and a request to the other model."""
    sends: dict[str, Send] = {}
    for i, image in enumerate(images()):
        jpeg, png, pixels = encoded(image, "JPEG"), encoded(image), np.asarray(image)
        sends |= {
            f"jpeg {i}": methodcaller("files", jpeg),
            f"mixed {i}": methodcaller("files", jpeg, png, jpeg),
            f"classify {i}": methodcaller("classify", jpeg),
            f"array {i}": methodcaller("pixels", np.asarray(image.resize((70, 64)))),
            f"grpc {i}": methodcaller("grpc", [1], "BYTES", elements(jpeg)),
            f"grpc array {i}": methodcaller("grpc", list(pixels.shape), "UINT8", pixels.tobytes()),
        }
    batch = np.stack([np.asarray(image.resize((80, 80))) for image in images()])
    return sends | {
        "big jpeg": methodcaller("classify", big_jpeg()),
        "batch": methodcaller("pixels", batch),
        "other model": methodcaller("infer", [1.5, 2.0], [1, 2], "FP32", model="sum"),
    }


def invalid_requests() -> dict[str, Send]:
    """Return requests that get status 400; some would take gigabytes or minutes to decode."""
    jpeg = encoded(images()[0], "JPEG")
    many = b'{"inputs":[' + b"{}," * 2**20 + b"{}]}"
    infer = f"{MODEL}/infer"
    return {
        "truncated": methodcaller("classify", jpeg[: len(jpeg) // 2]),
        "no image": methodcaller("classify", b"hello"),
        "empty": methodcaller("files", b""),
        "one of two truncated": methodcaller("files", jpeg, jpeg[:100]),
        "two channels": methodcaller("pixels", np.zeros((4, 4, 2), np.uint8)),
        "grpc shape": methodcaller("grpc", [4, 4, 3], "UINT8", bytes(7)),
        "grpc no image": methodcaller("grpc", [1], "BYTES", elements(b"hello")),
        "lossless WebP, 34 bytes": methodcaller("classify", bombs.lossless_webp(8000, 8000)),
        "BMP, run lengths": methodcaller("classify", bombs.rle_bmp(500, 500)),
        "PNG, one pixel wide": methodcaller("classify", bombs.png(1, 63_000_000)),
        "JPEG, 100,000 scans": methodcaller("classify", bombs.progressive_jpeg(800, 800, 100_000)),
        "WebP, 5000 frames": methodcaller("classify", bombs.animated_webp(5000)),
        "many inputs": methodcaller("post", infer, many),
        "many inputs, gzip": methodcaller(
            "post", infer, gzip.compress(many), **{"Content-Encoding": "gzip"}
        ),
    }


def abandoned_requests() -> dict[str, Send]:
    """Return requests whose client closes the connection."""
    three = json.dumps(body(tensor([tensor(encoded(images()[0], "JPEG"))["data"][0]] * 3)))
    return {
        "hung up": methodcaller("hang_up", "infer", three.encode(), 1.0),
        "hung up half-way": methodcaller("hang_up", "infer", three.encode(), 0.5),
        "hung up, big": methodcaller("hang_up", "classify", big_jpeg(), 1.0),
    }


def big_jpeg() -> bytes:
    """Return a JPEG of 20 megapixels."""
    return encoded(images()[0].resize((5000, 4000)), "JPEG")


def is_right(outcome: Outcome, expected: Outcome) -> bool:
    """Return whether both have the same labels in the same order; near ties may swap."""
    if isinstance(outcome, int) or isinstance(expected, int):
        return outcome == expected
    return len(outcome) == len(expected) and all(map(_same_ranking, outcome, expected))


def _same_ranking(ranking: Ranking, expected: Ranking) -> bool:
    scores = dict(zip(*expected, strict=True))
    lowest = expected[1][-1]
    return np.allclose(ranking[1], expected[1], atol=TOLERANCE) and all(
        abs(scores.get(label, lowest) - score) <= TOLERANCE
        for label, score in zip(*ranking, strict=True)
    )


class Tally:
    """The outcomes of all requests, and examples of the bad ones."""

    def __init__(self) -> None:
        self._outcomes: list[tuple[str, str]] = []  # threads may append without a lock

    def add(self, outcome: str, example: str = "") -> None:
        """Count an outcome."""
        self._outcomes.append((outcome, example))

    @property
    def counts(self) -> Counter[str]:
        """How often each outcome occurred."""
        return Counter(outcome for outcome, _ in self._outcomes)

    @property
    def examples(self) -> list[str]:
        """The first bad outcomes."""
        bad = [f"{outcome}: {example}" for outcome, example in self._outcomes if example]
        return bad[:20]

    def __str__(self) -> str:
        counts = self.counts
        names = ("right", "wrong", "lost", "refused (503)")
        return ", ".join(f"{counts[name]} {name}" for name in names)


class Soak:
    """All requests with their expected outcomes; valid ones are first sent to the idle server."""

    def __init__(self, server: LocalServer) -> None:
        client = Client(server)
        self._server = server
        self.tally = Tally()
        self._requests: list[tuple[str, Send, Outcome]] = [
            *((name, send, send(client)) for name, send in valid_requests().items()),
            *((name, send, 400) for name, send in invalid_requests().items()),
            *((name, send, []) for name, send in abandoned_requests().items()),
        ]
        refused = [n for n, _, out in self._requests[: len(valid_requests())] if out in (400, 503)]
        assert not refused, f"valid requests are refused: {refused}"

    def run(self, minutes: float, clients: int) -> None:
        """Send random requests for so long; prints a line a minute."""
        with self._clients(min(clients, 2)):
            time.sleep(5)  # one-time allocations
        start, deadline = memory(self._server), time.monotonic() + 60 * minutes
        print(f"{len(self._requests)} requests, {clients} clients, {start:.0f} MiB", flush=True)
        with self._clients(clients):
            while (remaining := deadline - time.monotonic()) > 0:
                time.sleep(min(60, remaining))
                print(f"{self.tally}, {memory(self._server):.0f} MiB", flush=True)
                if self._server.process.poll() is not None:
                    self.tally.add("lost", "the server has ended")
                    break
        print("\n".join(self.tally.examples), file=sys.stderr)
        print(f"Memory: {start:.0f} MiB at the start, {memory(self._server):.0f} MiB at the end.")

    @contextmanager
    def _clients(self, count: int) -> Iterator[None]:
        """Run clients; ends when every request has a response. The random order is seeded."""
        ended = threading.Event()

        def run(seed: int) -> None:
            generator, client = random.Random(seed), Client(self._server)
            while not ended.is_set():
                self._check(client, *generator.choice(self._requests))

        threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(2 * TIMEOUT)
                if thread.is_alive():
                    self.tally.add("lost", "a client still waits")

    def _check(self, client: Client, name: str, send: Send, expected: Outcome) -> None:
        try:
            outcome = send(client)
        except Exception as error:
            self.tally.add("lost", f"{name}: {error!r}")
            return
        if outcome == 503:
            self.tally.add("refused (503)")
            time.sleep(0.05)
        elif is_right(outcome, expected):
            self.tally.add("right")
        else:
            self.tally.add("wrong", f"{name}: {str(outcome)[:300]}")


def make_repository(folder: Path) -> Path:
    """Make a model repository with `tinyvit/` and the other model."""
    root = folder / "repository"
    shutil.copytree(ROOT / "tinyvit", root / "tinyvit")
    shutil.move(root / "tinyvit" / "settings.json", root)
    (root / "mlserver_timm").symlink_to(root / "tinyvit" / "mlserver_timm")
    (root / "sum").mkdir()
    shutil.copy(ROOT / "benchmarks" / "sum_model.py", root / "sum")
    settings = {"name": "sum", "implementation": "sum_model.SumModel"}
    settings |= {"max_batch_size": 8, "max_batch_time": 0.05}
    (root / "sum" / "model-settings.json").write_text(json.dumps(settings))
    return root


def main() -> None:
    """Start a server and soak it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {
            "MLSERVER_METRICS_DIR": str(folder / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(folder / "environments"),
            "HF_HUB_OFFLINE": "1",
        }
        log = folder / "server.log"
        with serving(make_repository(folder), env=env, log=log, cwd=folder) as server:
            soak = Soak(server)
            soak.run(float(os.environ.get("MINUTES") or 30), options.clients)
            output = server.output()
    tracebacks = output.count("Traceback")
    if tracebacks:
        print(f"{tracebacks} tracebacks in the server's log, which ends:\n{output[-4000:]}")
    sys.exit(bool(soak.tally.examples or tracebacks))


if __name__ == "__main__":
    main()
