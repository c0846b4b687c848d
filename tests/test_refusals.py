"""Bad requests get one clear sentence, over REST and gRPC, and harm nobody else."""

import contextlib
import gzip
import http.server
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from PIL import Image

from clients import (
    COFFEE,
    FORMATS,
    LABEL,
    assert_refused,
    assert_sane,
    assert_sentence,
    body,
    classify,
    image_file,
    infer,
    labels,
    message,
    resident,
    stub,
    tensor,
    text,
)
from conftest import Serve, settings
from local import LocalServer

MEGABYTE = 2**20
GOOD = image_file("PNG")
PIXELS = [0, 128, 255] * 4


@pytest.fixture
def sane_server(either_server: LocalServer) -> Iterator[LocalServer]:
    """Each server in turn, which has to be as good as new afterwards."""
    before = either_server.output().count("Traceback")
    yield either_server
    assert either_server.process.poll() is None
    assert_sane(either_server)
    log = either_server.output()
    assert log.count("Traceback") == before, log[-3000:]


def array(shape: Any, data: Any = PIXELS, datatype: str = "UINT8") -> dict[str, Any]:
    return body(tensor(data, shape, datatype))


def without(key: str) -> dict[str, Any]:
    whole = tensor(PIXELS, [2, 2, 3], "UINT8")
    return body({k: v for k, v in whole.items() if k != key})


def png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and next to nothing after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10 * MEGABYTE))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, kind)
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
XPM = b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #FF0000",\n"a"\n};\n'
FOREIGN = {
    **{
        kind: saved(kind)
        for kind in ("TIFF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "DDS", "SGI")
    },
    "SVG": SVG,
    "XPM": XPM,
    "HTML": b"<html><img src='x.png'></html>",
}
CUTS = [
    pytest.param(image_file(kind)[: int(len(image_file(kind)) * part)], id=f"{kind}-{part}")
    for kind in FORMATS
    for part in (0.01, 0.05, 0.3, 0.6, 0.9)
]
NO_IMAGES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00", id="zero"),
    pytest.param(b"hello", id="words"),
    pytest.param(bytes(range(256)) * 40, id="noise"),
    pytest.param(b"\x89PNG\r\n\x1a\n", id="signature"),
    pytest.param(b"\xff\xd8\xff", id="jpeg-signature"),
    pytest.param(b"GIF89a\x00\x00\x00\x00\x00\x00\x00", id="gif-of-nothing"),
    pytest.param(png(0, 10), id="no-width"),
    pytest.param(png(100_000, 100_000), id="bomb"),
    pytest.param(png(8_001, 8_000), id="just-too-large"),
    pytest.param(png(2**31 - 1, 2**31 - 1), id="largest-png"),
    *[pytest.param(data, id=kind) for kind, data in FOREIGN.items()],
    *CUTS,
]

BODIES: dict[str, Any] = {
    "nothing": {},
    "no-inputs": body(),
    "null-inputs": {"inputs": None},
    "inputs-object": {"inputs": {"payload": PIXELS}},
    "inputs-of-numbers": body(1, 2),
    "inputs-of-null": body(None),
    "doubled": body(tensor(GOOD), tensor(GOOD)),
    "extra": body(tensor(GOOD), tensor(GOOD, name="mask")),
    "misnamed": body(tensor(GOOD, name="image")),
    "name-in-capitals": body(tensor(GOOD, name="Payload")),
    "name-of-a-path": body(tensor(GOOD, name="../../etc/passwd")),
    "name-null": body(tensor(GOOD, name=None)),
    "name-long": body(tensor(GOOD, name="x" * 100_000)),
    "no-name": without("name"),
    "no-shape": without("shape"),
    "no-datatype": without("datatype"),
    "no-data": without("data"),
    "too-few-values": array([2, 2, 3], PIXELS[:-1]),
    "too-many-values": array([2, 2, 3], [*PIXELS, 1]),
    "no-values": array([2, 2, 3], []),
    "shape-empty": array([]),
    "shape-null": body({**tensor(PIXELS, [], "UINT8"), "shape": None}),
    "shape-text": array("2,2,3"),
    "shape-of-text": array(["2", "x", 3]),
    "shape-of-floats": array([2.5, 2, 3]),
    "shape-nested": array([[2, 2, 3]]),
    "negative": array([-2, -2, 3]),
    "minus-one": array([-1, 2, 2, 3]),
    "zero-height": array([0, 2, 3], []),
    "zero-images": array([0, 2, 2, 3], []),
    "zero-channels": array([2, 2, 0], []),
    "absurd": array([2**40, 2**40, 3]),
    "beyond-64-bits": array([2**70, 2, 3]),
    "absurd-batch": array([2**40, 2, 2, 3]),
    "1-dimension": array([12]),
    "2-dimensions": array([3, 4]),
    "5-dimensions": array([1, 1, 2, 2, 3]),
    "2-channels": array([2, 3, 2]),
    "channels-first": array([3, 2, 2]),
    "256": array([2, 2, 3], [*PIXELS[:-1], 256]),
    "minus-1": array([2, 2, 3], [*PIXELS[:-1], -1], "INT16"),
    "huge-values": array([2, 2, 3], [2**40] * 12, "INT64"),
    "floats": array([2, 2, 3], [0.5] * 12),
    "round-floats": array([2, 2, 3], [1.0] * 12),
    "text-values": array([2, 2, 3], ["1"] * 12),
    "null-values": array([2, 2, 3], [None] * 12),
    "one-null": array([2, 2, 3], [*PIXELS[:-1], None]),
    "nested": array([2, 2, 3], [[[1, 2, 3]] * 2] * 2),
    "object-values": array([2, 2, 3], [{}] * 12),
    "data-object": array([2, 2, 3], {"0": 1}),
    "data-text": array([2, 2, 3], "000000000000"),
    "data-number": array([2, 2, 3], 7),
    "data-null": array([2, 2, 3], None),
    "FP32": array([2, 2, 3], [0.5] * 12, "FP32"),
    "FP16": array([2, 2, 3], [0.5] * 12, "FP16"),
    "FP64": array([2, 2, 3], [0.5] * 12, "FP64"),
    "BOOL": array([2, 2, 3], [True] * 12, "BOOL"),
    "STRING": array([1], ["x"], "STRING"),
    "uint8-in-small": array([2, 2, 3], PIXELS, "uint8"),
    "datatype-null": array([2, 2, 3], PIXELS, None),  # type: ignore[arg-type]
    "datatype-number": array([2, 2, 3], PIXELS, 8),  # type: ignore[arg-type]
    "bytes-none": body(tensor([], [0])),
    "bytes-too-few": body(tensor([text(GOOD)], [2])),
    "bytes-too-many": body(tensor([text(GOOD)] * 2, [1])),
    "bytes-wide": body(tensor([text(GOOD)] * 2, [1, 2])),
    "bytes-3-dimensions": body(tensor([text(GOOD)], [1, 1, 1])),
    "bytes-negative": body(tensor([text(GOOD)], [-1])),
    "bytes-of-numbers": body(tensor([1, 2, 3])),
    "bytes-of-null": body(tensor([None])),
    "bytes-nested": body(tensor([[text(GOOD)]])),
    "bytes-text": body(tensor(text(GOOD), [1])),
    "one-of-two-damaged": body(tensor([text(GOOD), text(GOOD[:90])])),
    "base64-invalid": body(tensor(["!!!!"])),
    "base64-unpadded": body(tensor([text(GOOD).rstrip("=") + "A"])),
    "base64-of-the-url-kind": body(tensor(["-_-_"])),
    "base64-with-breaks": body(tensor([text(GOOD)[:40] + "\n" + text(GOOD)[40:]])),
    "base64-beyond-ascii": body(tensor(["日本語"])),
    "base64-empty": body(tensor([""])),
    "data-url": body(tensor(["data:image/png;base64," + text(GOOD)])),
    "too-many-images": body(tensor([text(GOOD)] * 65)),
    "unknown-output": body(tensor(GOOD), outputs=[{"name": "logits"}]),
    "one-unknown-output": body(tensor(GOOD), outputs=[{"name": "labels"}, {"name": "x" * 9999}]),
    "outputs-of-text": body(tensor(GOOD), outputs=["labels"]),
    "outputs-object": body(tensor(GOOD), outputs={"name": "labels"}),
    "parameters-list": body(tensor(GOOD), parameters=[]),
    "content-type-number": body(tensor(GOOD, parameters={"content_type": 5})),
    "id-number": body(tensor(GOOD), id=5),
    "id-object": body(tensor(GOOD), id={}),
    "id-with-a-line-break": body(tensor(GOOD), id="a\r\nSet-Cookie: b=c"),
    "id-with-zero": body(tensor(GOOD), id="a\x00b"),
    "id-beyond-ascii": body(tensor(GOOD), id="ключ"),
    "id-long": body(tensor(GOOD), id="x" * 257),
    **{
        f"top-k-{k!r}": body(tensor(GOOD), parameters={"top_k": k})
        for k in (
            0,
            -1,
            201,
            10**9,
            2**70,
            True,
            False,
            "x",
            "",
            "-1",
            "١" * 20,
            2.5,
            1e300,
            [3],
            {},
        )
    },
    "a-list": [],
    "a-number": 7,
    "a-text": "payload",
    "a-null": None,
}


@pytest.mark.parametrize("request_body", BODIES.values(), ids=BODIES.keys())
def test_json(sane_server: LocalServer, request_body: Any) -> None:
    assert_refused(infer(sane_server, json.dumps(request_body).encode(), headers=JSON))


JSON = {"Content-Type": "application/json"}
BROKEN = {
    "no-body": b"",
    "words": b"hello",
    "cut": json.dumps(body(tensor(GOOD))).encode()[:-2],
    "two": b"{}{}",
    "not-utf-8": b'{"inputs": "\xff\xfe"}',
    "half-a-surrogate": b'{"inputs": "\\ud800"}',
    "not-a-number": b'{"inputs": [NaN, Infinity]}',
    "deep": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "zero-bytes": bytes(1000),
    "image": GOOD,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_json(sane_server: LocalServer, data: bytes) -> None:
    assert_refused(infer(sane_server, data, headers=JSON))


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "image/png", "nonsense"]
)
def test_content_type(sane_server: LocalServer, content_type: str) -> None:
    data = json.dumps(body(tensor(GOOD))).encode()
    error = assert_refused(infer(sane_server, data, headers={"Content-Type": content_type}))
    assert "application/json" in error


@pytest.mark.parametrize("data", NO_IMAGES)
def test_no_image(sane_server: LocalServer, data: bytes) -> None:
    """The same sentence, by whichever way it came."""
    errors = {
        assert_refused(infer(sane_server, body(tensor(data)))),
        assert_refused(classify(sane_server, data)),
        refused(sane_server, message(bytes_contents=[data])),
        refused(sane_server, message(raw=[struct.pack("<I", len(data)) + data])),
    }
    assert len(errors) == 1, errors


@pytest.mark.parametrize("data", [b"", b"hello", *FOREIGN.values()])
def test_says_what_is_accepted(server: LocalServer, data: bytes) -> None:
    error = assert_refused(classify(server, data))
    assert all(kind in error for kind in FORMATS)


def test_says_which_arrays_are_accepted(server: LocalServer) -> None:
    for request in (array([12]), array([2, 3, 2]), array([2, 2, 3], [0.5] * 12, "FP32")):
        error = assert_refused(infer(server, request))
        assert "[H,W,C]" in error and "BYTES" in error


@pytest.mark.parametrize("top_k", ["0", "-1", "201", "1000000000", "true", "x", "2.5", ""])
def test_top_k_of_classify(sane_server: LocalServer, top_k: str) -> None:
    error = assert_refused(classify(sane_server, GOOD, params={"top_k": top_k}))
    assert "1 to 200" in error


def test_form(sane_server: LocalServer) -> None:
    url = f"{sane_server.url}/v2/models/tinyvit/classify"
    assert "form" in assert_refused(requests.post(url, files={"picture": GOOD}, timeout=60))


def test_top_k_null_is_the_default(either_server: LocalServer) -> None:
    assert len(labels(infer(either_server, body(tensor(GOOD), parameters={"top_k": None})))) == 5


# --- Bombs and floods of bytes ----------------------------------------------------------------


def test_bombs_take_neither_time_nor_memory(sane_server: LocalServer) -> None:
    assert_sane(sane_server)
    before = resident(sane_server)
    for _ in range(20):
        started = time.monotonic()
        assert "too large" in assert_refused(classify(sane_server, png(100_000, 100_000)))
        assert "too large" in assert_refused(infer(sane_server, array([100_000, 100_000, 3])))
        assert time.monotonic() - started < 5
    assert resident(sane_server) - before < 150 * MEGABYTE


@pytest.fixture(scope="module")
def bombs() -> list[bytes]:
    """A few kilobytes that unpack to a little and to far more than is accepted."""
    return [gzip.compress(bytes(size * MEGABYTE)) for size in (65, 400)]


@pytest.mark.parametrize("route", ["infer", "classify"])
def test_gzip_bomb(sane_server: LocalServer, bombs: list[bytes], route: str) -> None:
    url = f"{sane_server.url}/v2/models/tinyvit/{route}"
    headers = {"Content-Encoding": "gzip", **JSON}
    before = resident(sane_server)
    for bomb in bombs:
        assert_refused(requests.post(url, data=bomb, headers=headers, timeout=60), 413)
    twice = gzip.compress(bombs[0])
    assert_refused(requests.post(url, data=twice, headers=headers, timeout=60))
    assert resident(sane_server) - before < 300 * MEGABYTE


def test_bad_gzip(sane_server: LocalServer) -> None:
    good = gzip.compress(json.dumps(body(tensor(GOOD))).encode())
    headers = {"Content-Encoding": "gzip", **JSON}
    assert infer(sane_server, good, headers=headers).status_code == 200
    for data in (b"", b"hello", good[:-4], good[:30], good + b"x", good[:40] + b"x" + good[41:]):
        assert "gzip" in assert_refused(infer(sane_server, data, headers=headers))


def test_body_too_large(sane_server: LocalServer) -> None:
    """By its length before it is sent, and by what comes where no length is told."""
    data = bytes(65 * MEGABYTE)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), MEGABYTE):
            yield data[start : start + MEGABYTE]

    for route in ("infer", "classify"):
        url = f"{sane_server.url}/v2/models/tinyvit/{route}"
        for content in (data, pieces()):
            with contextlib.suppress(requests.ConnectionError):  # told while still sending
                assert_refused(requests.post(url, data=content, headers=JSON, timeout=60), 413)


def test_message_too_large(sane_server: LocalServer) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub(sane_server).ModelInfer(message(bytes_contents=[bytes(65 * MEGABYTE)]), timeout=60)
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


# --- gRPC -------------------------------------------------------------------------------------


def refused(server: LocalServer, request: pb.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(request, timeout=60)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT, failure.value.details()
    assert_sentence(failure.value.details())
    return failure.value.details()


def pixels(shape: list[int], values: Any = PIXELS, datatype: str = "UINT8", **more: Any) -> Any:
    return message(shape, datatype, uint_contents=values, **more)


MESSAGES = {
    "no-inputs": message(count=0),
    "doubled": message(count=2, bytes_contents=[GOOD]),
    "misnamed": message(name="image", bytes_contents=[GOOD]),
    "no-name": message(name="", bytes_contents=[GOOD]),
    "no-data": message(),
    "no-datatype": message(datatype="", bytes_contents=[GOOD]),
    "unknown-datatype": message(datatype="IMAGE", bytes_contents=[GOOD]),
    "too-few-values": pixels([2, 2, 3], PIXELS[:-1]),
    "too-many-values": pixels([2, 2, 3], [*PIXELS, 1]),
    "shape-empty": pixels([]),
    "negative": pixels([-2, -2, 3]),
    "zero": pixels([0, 2, 3], []),
    "absurd": pixels([2**40, 2**40, 3]),
    "absurd-batch": pixels([2**62, 2, 2, 3]),
    "1-dimension": pixels([12]),
    "2-dimensions": pixels([3, 4]),
    "5-dimensions": pixels([1, 1, 2, 2, 3]),
    "2-channels": pixels([2, 3, 2]),
    "256": pixels([2, 2, 3], [*PIXELS[:-1], 256]),
    "minus-1": message([2, 2, 3], "INT32", int_contents=[-1] * 12),
    "huge-values": message([2, 2, 3], "UINT64", uint64_contents=[2**63] * 12),
    "floats": message([2, 2, 3], "UINT8", fp32_contents=[0.5] * 12),
    "FP32": message([2, 2, 3], "FP32", fp32_contents=[0.5] * 12),
    "FP64": message([2, 2, 3], "FP64", fp64_contents=[0.5] * 12),
    "FP16": message([1], "FP16", bytes_contents=[b"ab"]),
    "BOOL": message([2, 2, 3], "BOOL", bool_contents=[True] * 12),
    "bytes-as-pixels": message([2, 2, 3], "UINT8", bytes_contents=[bytes(12)]),
    "pixels-as-bytes": message([12], "BYTES", uint_contents=PIXELS),
    "bytes-too-few": message([2], bytes_contents=[GOOD]),
    "bytes-too-many": message([1], bytes_contents=[GOOD, GOOD]),
    "bytes-wide": message([1, 2], bytes_contents=[GOOD, GOOD]),
    "too-many-images": message([65], bytes_contents=[GOOD] * 65),
    "base64-invalid": message(bytes_contents=[b"!!"], tensor_parameters={"content_type": "base64"}),
    "content-type-number": message(bytes_contents=[GOOD], tensor_parameters={"content_type": 5}),
    "headers": message(bytes_contents=[GOOD], asked={"headers": "x"}),
    "raw-too-short": message([2, 2, 3], "UINT8", raw=[bytes(11)]),
    "raw-too-long": message([2, 2, 3], "UINT8", raw=[bytes(13)]),
    "raw-absurd": message([2**40, 2**20, 3], "UINT8", raw=[bytes(12)]),
    "raw-negative": message([-2, 2, 3], "UINT8", raw=[bytes(12)]),
    "raw-unknown-datatype": message([2, 2, 3], "IMAGE", raw=[bytes(12)]),
    "raw-float": message([2, 2, 3], "FP32", raw=[bytes(48)]),
    "raw-bytes-length-lies": message(raw=[b"\xff\xff\xff\xff" + GOOD]),
    "raw-bytes-half-a-length": message(raw=[b"\x01\x00"]),
    "raw-for-two": message(count=2, raw=[struct.pack("<I", len(GOOD)) + GOOD]),
    "unknown-output": message(bytes_contents=[GOOD], outputs=("logits",)),
    "id-with-a-line-break": message(bytes_contents=[GOOD], identifier="a\r\nb"),
    "id-beyond-ascii": message(bytes_contents=[GOOD], identifier="ключ"),
    "id-long": message(bytes_contents=[GOOD], identifier="x" * 257),
    **{
        f"top-k-{k!r}": message(bytes_contents=[GOOD], asked={"top_k": k})
        for k in (0, -1, 201, 10**9, 2**62, True, "x", "2.5")
    },
}


@pytest.mark.parametrize("request_message", MESSAGES.values(), ids=MESSAGES.keys())
def test_message(sane_server: LocalServer, request_message: pb.ModelInferRequest) -> None:
    refused(sane_server, request_message)


# --- Streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["infer_stream", "generate_stream"])
def test_stream_over_rest(sane_server: LocalServer, route: str) -> None:
    """A refusal has its status, because the stream starts with the first answer."""
    url = f"{sane_server.url}/v2/models/tinyvit/{route}"
    assert_refused(requests.post(url, json=array([12]), timeout=60))
    assert_refused(requests.post(url, json=body(tensor(b"hello")), timeout=60))
    unknown = requests.post(url.replace("tinyvit", "nobody"), json=array([12]), timeout=60)
    assert unknown.status_code == 404 and unknown.json()["error"]
    good = requests.post(url, json=body(tensor(COFFEE.read_bytes())), timeout=60)
    assert good.headers["content-type"].startswith("text/event-stream")
    events = [line for line in good.text.split("\n\n") if line]
    assert len(events) == 1
    assert json.loads(events[0].removeprefix("data: "))["outputs"][0]["data"][0] == LABEL


def test_stream_over_grpc(sane_server: LocalServer) -> None:
    """As many answers as requests, in their order; then the refusal."""
    coffee = message(bytes_contents=[COFFEE.read_bytes()])
    grey = message([1, 1, 1], "UINT8", uint_contents=[128])
    stream = stub(sane_server).ModelStreamInfer
    expected = [stub(sane_server).ModelInfer(r, timeout=60).outputs for r in (coffee, grey)]
    answers = list(stream(iter([coffee, grey, coffee]), timeout=60))
    assert [answer.outputs for answer in answers] == [*expected, expected[0]]
    with pytest.raises(grpc.RpcError) as failure:
        for answer in stream(iter([coffee, message([12], "UINT8"), coffee]), timeout=60):
            assert answer.outputs == expected[0]
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(failure.value.details())


# --- Trust ------------------------------------------------------------------------------------


@pytest.fixture
def trap() -> Iterator[tuple[str, list[str]]]:
    """An address, and who has come by."""
    visits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(GOOD)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_address[1]}/picture.png", visits
        listener.shutdown()


def test_nothing_named_is_opened(sane_server: LocalServer, trap: tuple[str, list[str]]) -> None:
    """Addresses and paths are no images, wherever in a request they stand."""
    url, visits = trap
    for name in (url, "file:///etc/passwd", str(COFFEE), "../../imgs/coffee.jpg", "/dev/zero"):
        assert_refused(classify(sane_server, name.encode()))
        assert_refused(infer(sane_server, body(tensor([name]))))
        assert_refused(infer(sane_server, body(tensor(name.encode()))))
        refused(sane_server, message(bytes_contents=[name.encode()]))
        for parameters in ({"content_type": name}, {"uri": name, "binary_data_size": 5}):
            plain = infer(
                sane_server, body(tensor(GOOD, parameters=parameters), parameters=parameters)
            )
            assert plain.status_code == 200
    link = SVG.replace(b"file:///etc/passwd", url.encode())
    assert_refused(classify(sane_server, link))
    assert not visits


def test_writes_nothing_elsewhere(serve: Serve, tmp_path: Path) -> None:
    """Neither at home nor in the folder for temporary files, the libraries included; the cache
    folder and MLServer's own are where the settings say."""
    folders = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in folders.values():
        folder.mkdir()
    env = {name: str(folder) for name, folder in folders.items()}
    env["TINYVIT_CACHE_DIR"] = str(tmp_path / "cache")
    server = serve(folder=settings(tmp_path, workers=1), env=env)
    assert_sane(server)
    refused(server, message(bytes_contents=[b"hello"]))
    written = sorted(p for f in folders.values() for p in f.rglob("*") if p.is_file())
    assert not written
    assert server.stop() == 0


def test_unknown_addresses(sane_server: LocalServer) -> None:
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("DELETE", "/v2/models/tinyvit/infer", 405),
        ("GET", "/v2/models/tinyvit/classify", 405),
    ):
        response = requests.request(method, sane_server.url + path, timeout=60)
        assert_refused(response, status)
    for path in ("nobody/infer", "tinyvit/versions/7/infer"):
        url = f"{sane_server.url}/v2/models/{path}"
        response = requests.post(url, json=body(tensor(GOOD)), timeout=60)
        assert response.status_code == 404
        assert "not found" in response.json()["error"]
