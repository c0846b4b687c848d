"""Good, bad, big and hung-up requests from many clients for a long time, every answer checked.

    MINUTES=30 python benchmarks/soak.py [--workers N] [--clients N]

Somebody else's model is in the same server, and its answers are checked too. Among the bad requests
are small ones made to take much memory or time. Where there are workers, one is killed every
`KILL_EVERY` seconds.

Prints a line a minute and the sums at the end; exit status 1 where an answer was wrong or lost.
"""

import argparse
import base64
import gzip
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "client", "")]

from client.local import LocalServer, serving  # noqa: E402
from tests.support import bombs  # noqa: E402
from tests.support.clients import workers  # noqa: E402

PATIENCE = 120
"""Seconds after which an answer counts as lost."""

KILL_EVERY = 20
"""Seconds between two deaths of workers."""

TOLERANCE = 1e-3
"""Between scores of one picture in batches of different sizes."""

Answer = tuple[list[str], list[float]]
"""Labels and scores of one picture."""


class Refused(Exception):
    """An answer other than labels; the argument is the HTTP status, or gRPC's put as one."""


# --- Pictures ---------------------------------------------------------------------------------


def pictures() -> list[Image.Image]:
    """Photos and what is made of them: no two have the same answer."""
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "imgs").glob("*.jpg"))]
    made = [photo.resize((300, 220)) for photo in photos]
    made += [photo.rotate(90, expand=True).resize((200, 260)) for photo in photos]
    made += [photo.crop((0, 0, photo.width // 2, photo.height // 2)) for photo in photos]
    return made


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


# --- Ways to ask ------------------------------------------------------------------------------


def rest(session: requests.Session, server: LocalServer, *tensors: Any) -> list[Answer]:
    url = f"{server.url}/v2/models/tinyvit/infer"
    response = session.post(url, json={"inputs": list(tensors)}, timeout=PATIENCE)
    if response.status_code != 200:
        raise Refused(response.status_code)
    labels, scores = (output["data"] for output in response.json()["outputs"])
    return [(labels[i : i + 5], scores[i : i + 5]) for i in range(0, len(labels), 5)]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask_files(session: requests.Session, server: LocalServer, *files: bytes) -> list[Answer]:
    data = [text(file) for file in files]
    tensor = {"name": "payload", "shape": [len(files)], "datatype": "BYTES", "data": data}
    return rest(session, server, tensor)


def ask_array(session: requests.Session, server: LocalServer, pixels: np.ndarray) -> list[Answer]:
    data = pixels.ravel().tolist()
    tensor = {"name": "payload", "shape": pixels.shape, "datatype": "UINT8", "data": data}
    return rest(session, server, tensor)


def ask_classify(session: requests.Session, server: LocalServer, file: bytes) -> list[Answer]:
    url = f"{server.url}/v2/models/tinyvit/classify"
    response = session.post(url, data=file, timeout=PATIENCE)
    if response.status_code != 200:
        raise Refused(response.status_code)
    ranking = response.json()
    return [([one["label"] for one in ranking], [one["score"] for one in ranking])]


def ask_raw(
    session: requests.Session, server: LocalServer, path: str, data: bytes, **headers: str
) -> list[Answer]:
    """What is refused, whatever it is; raises AssertionError where it is not."""
    url = f"{server.url}/v2/models/tinyvit/{path}"
    response = session.post(url, data=data, headers=headers, timeout=PATIENCE)
    assert response.status_code != 200
    raise Refused(response.status_code)


def ask_neighbour(session: requests.Session, server: LocalServer) -> list[Answer]:
    """Somebody else's model, which adds two numbers."""
    rows = {"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]}
    url = f"{server.url}/v2/models/neighbour/infer"
    response = session.post(url, json={"inputs": [rows]}, timeout=PATIENCE)
    if response.status_code != 200:
        raise Refused(response.status_code)
    return [(["sum"], response.json()["outputs"][0]["data"])]


STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def ask_grpc(stub: GRPCInferenceServiceStub, shape: list[int], raw: bytes, kind: str) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(name="payload", datatype=kind, shape=shape)
    if kind == "BYTES":
        raw = len(raw).to_bytes(4, "little") + raw
    request = pb.ModelInferRequest(model_name="tinyvit", inputs=[tensor], raw_input_contents=[raw])
    try:
        response = stub.ModelInfer(request, timeout=PATIENCE)
    except grpc.RpcError as error:
        raise Refused(STATUS.get(error.code(), error.code().name)) from None
    labels, scores = response.raw_output_contents
    return [(unpacked(labels), np.frombuffer(scores, np.float32).tolist())]


def unpacked(data: bytes) -> list[str]:
    """The strings of a raw BYTES tensor."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return found


def hang_up(server: LocalServer, path: str, data: bytes, part: float) -> None:
    """Sends so much of a request, and goes."""
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE) as connection:
        connection.sendall(head.encode() + data[: int(len(data) * part)])


# --- What is asked, and what has to come ------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Something to send and its expected end: answers, a status, or nothing at all."""

    name: str
    ask: Callable[["Client"], list[Answer] | None]
    expected: list[Answer] | int | None


@dataclass
class Client:
    """Connections of one client."""

    server: LocalServer

    def __post_init__(self) -> None:
        self.session = requests.Session()
        self.stub = GRPCInferenceServiceStub(grpc.insecure_channel(self.server.grpc))


BOMBS = {
    "lossless WebP, 34 bytes": bombs.lossless_webp(8000, 8000),
    "BMP, run lengths": bombs.rle_bmp(500, 500),
    "PNG, a pixel wide": bombs.png(1, 63_000_000),
    "JPEG, 1000 scans": bombs.progressive_jpeg(800, 800, 1000),
    "WebP, 5000 frames": bombs.animated_webp(5000),
}
"""Small files that would take gigabytes or minutes to decode."""


def questions(server: LocalServer) -> list[Question]:
    """All kinds; the expected answers are asked for now, one at a time, on an idle server."""
    client = Client(server)
    found: list[Question] = []

    def good(name: str, ask: Callable[[Client], list[Answer]]) -> None:
        found.append(Question(name, ask, ask(client)))

    for i, picture in enumerate(pictures()):
        jpeg, png = encoded(picture), encoded(picture, "PNG")
        pixels = np.asarray(picture)
        small = np.asarray(picture.resize((70, 64)))
        good(f"jpeg {i}", lambda c, f=jpeg: ask_files(c.session, server, f))
        good(f"png {i}", lambda c, f=png: ask_files(c.session, server, f))
        good(f"classify {i}", lambda c, f=jpeg: ask_classify(c.session, server, f))
        good(f"array {i}", lambda c, p=small: ask_array(c.session, server, p))
        good(f"grpc {i}", lambda c, f=jpeg: ask_grpc(c.stub, [1], f, "BYTES"))
        good(
            f"grpc array {i}",
            lambda c, p=pixels: ask_grpc(c.stub, list(p.shape), p.tobytes(), "UINT8"),
        )
        good(f"mixed {i}", lambda c, a=jpeg, b=png: ask_files(c.session, server, a, b, a))
    big = encoded(pictures()[0].resize((5000, 4000)))
    good("big jpeg", lambda c: ask_classify(c.session, server, big))
    stack = np.stack([np.asarray(p.resize((80, 80))) for p in pictures()])
    good("batch", lambda c: ask_array(c.session, server, stack))

    def bad(name: str, ask: Callable[[Client], list[Answer]]) -> None:
        found.append(Question(name, ask, 400))

    whole = encoded(pictures()[0])
    bad("cut", lambda c: ask_classify(c.session, server, whole[: len(whole) // 2]))
    bad("no image", lambda c: ask_classify(c.session, server, b"hello"))
    bad("empty", lambda c: ask_files(c.session, server, b""))
    bad("half bad", lambda c: ask_files(c.session, server, whole, whole[:100]))
    bad("channels", lambda c: ask_array(c.session, server, np.zeros((4, 4, 2), np.uint8)))
    bad("grpc shape", lambda c: ask_grpc(c.stub, [4, 4, 3], bytes(7), "UINT8"))
    bad("grpc no image", lambda c: ask_grpc(c.stub, [1], b"hello", "BYTES"))

    for name, data in BOMBS.items():
        bad(name, lambda c, d=data: ask_raw(c.session, server, "classify", d))
    many = b'{"inputs":[' + b"{}," * 2**20 + b"{}]}"
    bad("many inputs", lambda c: ask_raw(c.session, server, "infer", many))
    packed, zipped = gzip.compress(many), {"Content-Encoding": "gzip"}
    bad("many inputs, packed", lambda c: ask_raw(c.session, server, "infer", packed, **zipped))

    good("neighbour", lambda c: ask_neighbour(c.session, server))

    def left(name: str, path: str, data: bytes, part: float) -> None:
        address = f"/v2/models/tinyvit/{path}"
        found.append(Question(name, lambda c: hang_up(server, address, data, part), None))

    tensor = {"name": "payload", "shape": [3], "datatype": "BYTES", "data": [text(whole)] * 3}
    left("hung up", "infer", json.dumps({"inputs": [tensor]}).encode(), 1.0)
    left("hung up half-way", "infer", json.dumps({"inputs": [tensor]}).encode(), 0.5)
    left("hung up, big", "classify", big, 1.0)
    return found


def equal(answers: list[Answer], expected: list[Answer]) -> bool:
    """The same labels in the same order; near ties may change places."""
    if len(answers) != len(expected):
        return False
    for (labels, scores), (right, right_scores) in zip(answers, expected, strict=True):
        if not np.allclose(scores, right_scores, atol=TOLERANCE):
            return False
        by_label = dict(zip(right, right_scores, strict=True))
        for label, score in zip(labels, scores, strict=True):
            edge = abs(score - right_scores[-1]) < TOLERANCE  # the sixth may become the fifth
            if abs(by_label.get(label, score if edge else -1) - score) > TOLERANCE:
                return False
    return True


# --- The soak ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the questions so far."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, example: str = "") -> None:
        with self._lock:
            self.counts[outcome] += 1
            if example and len(self.examples) < 20:
                self.examples.append(f"{outcome}: {example}")

    @property
    def failed(self) -> bool:
        return bool(self.counts["wrong"] or self.counts["lost"])

    def line(self) -> str:
        names = ("checked", "wrong", "lost", "refused (503)", "hung up", "workers killed")
        return ", ".join(f"{self.counts[name]} {name}" for name in names)


def check(question: Question, client: Client, tally: Tally) -> None:
    try:
        outcome: Any = question.ask(client)
    except Refused as refusal:
        outcome = refusal.args[0]
    except Exception as error:
        tally.add("lost", f"{question.name}: {error!r}")
        return
    if outcome == 503:
        tally.add("refused (503)")
        time.sleep(0.05)
    elif question.expected is None:
        tally.add("hung up")
    else:
        tally.add("checked")
        right = (
            equal(outcome, question.expected)
            if isinstance(outcome, list) and isinstance(question.expected, list)
            else outcome == question.expected
        )
        if not right:
            tally.add("wrong", f"{question.name}: {str(outcome)[:300]}")


@contextmanager
def asking(
    server: LocalServer, asked: list[Question], tally: Tally, clients: int
) -> Iterator[None]:
    """So many clients at work, at random but the same each time; ends when all are answered."""
    ended = threading.Event()

    def run(seed: int) -> None:
        generator, client = random.Random(seed), Client(server)
        while not ended.is_set():
            check(generator.choice(asked), client, tally)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                tally.add("lost", "a client still waits")


def memory(server: LocalServer) -> float:
    """Megabytes that the server and its children hold, pages in common counted once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == server.process.pid:
                rollup = status.with_name("smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0])
        except (OSError, IndexError):
            continue
    return total / 1024


def configured(folder: Path, workers: int) -> Path:
    """A repository with `tinyvit/` and somebody else's model, and so many workers."""
    root = folder / "repository"
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tinyvit", root / "tinyvit", ignore=without)
    shutil.copytree(ROOT / "tests" / "lifecycle" / "neighbour", root / "neighbour", ignore=without)
    (root / "neighbour" / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "neighbour",
                "implementation": "neighbour.Neighbour",
                "max_batch_size": 8,
                "max_batch_time": 0.05,
                "parameters": {"extra": {"notes": os.devnull}},
            }
        )
    )
    settings = json.loads((ROOT / "tinyvit" / "settings.json").read_text())
    (root / "settings.json").write_text(json.dumps(settings | {"parallel_workers": workers}))
    (root / "mlserver_timm").symlink_to(root / "tinyvit" / "mlserver_timm")
    return root


@contextmanager
def killing(server: LocalServer, tally: Tally, every: float = KILL_EVERY) -> Iterator[None]:
    """One worker after the other, where there are any."""
    ended = threading.Event()

    def run() -> None:
        generator = random.Random(0)
        while not ended.wait(every):
            if there := workers(server):
                os.kill(generator.choice(there), signal.SIGKILL)
                tally.add("workers killed")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def soak(server: LocalServer, minutes: float, clients: int) -> Tally:
    tally, asked = Tally(), questions(server)
    with asking(server, asked, tally, min(clients, 2)):
        time.sleep(5)  # what is allocated once is allocated
    start = memory(server)
    began = time.monotonic()
    print(f"{len(asked)} kinds of request, {clients} clients, {start:.0f} MB", flush=True)
    with asking(server, asked, tally, clients), killing(server, tally):
        minute = 0
        while (left := began + minutes * 60 - time.monotonic()) > 0:
            time.sleep(min(60, left))
            minute += 1
            print(f"{minute:4} min: {tally.line()}, {memory(server):.0f} MB", flush=True)
            if server.process.poll() is not None:
                tally.add("lost", "the server has ended")
                break
    print("\n".join(tally.examples), file=sys.stderr)
    print(f"Answers: {tally.line()}.")
    print(f"Memory: {start:.0f} MB at the start, {memory(server):.0f} MB at the end.")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=0, help="parallel_workers of the server")
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    minutes = float(os.environ.get("MINUTES") or 30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {
            "MLSERVER_METRICS_DIR": str(folder / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(folder / "environments"),
            "HF_HUB_OFFLINE": "1",
        }
        log = folder / "server.log"
        with serving(configured(folder, options.workers), env=env, log=log, cwd=folder) as server:
            tally = soak(server, minutes, options.clients)
            output = server.output()
    crashes = output.count("Traceback")
    if crashes:
        print(f"{crashes} tracebacks in the server's log, which ends:\n{output[-4000:]}")
    return 1 if tally.failed or crashes else 0


if __name__ == "__main__":
    sys.exit(main())
