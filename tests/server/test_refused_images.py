"""Bytes that are no image get one sentence, the same over every way in."""

import http.server
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.support.app import App
from tests.support.binary_tensors import elements
from tests.support.bombs import png_with_size as png
from tests.support.clients import (
    COFFEE,
    FORMATS,
    assert_refused,
    assert_sane,
    body,
    classify,
    image_file,
    infer,
    message,
    tensor,
)
from tests.support.refusals import GOOD, refused
from tests.support.servers import Serve


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, kind)
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
XPM = b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #FF0000",\n"a"\n};\n'
FOREIGN = {
    **{kind: saved(kind) for kind in ("PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "DDS", "SGI")},
    "SVG": SVG,
    "XPM": XPM,
    "HTML": b"<html><img src='x.png'></html>",
}
TRUNCATED = {
    f"{kind}-{part}": image_file(kind)[: int(len(image_file(kind)) * part)]
    for kind in FORMATS
    for part in (0.01, 0.05, 0.3, 0.6, 0.9)
}
NO_IMAGES = {
    "empty": b"",
    "zero": b"\x00",
    "words": b"hello",
    "noise": bytes(range(256)) * 40,
    "signature": b"\x89PNG\r\n\x1a\n",
    "jpeg-signature": b"\xff\xd8\xff",
    "gif-of-nothing": b"GIF89a\x00\x00\x00\x00\x00\x00\x00",
    "no-width": png(0, 10),
    "too-large-by-far": png(100_000, 100_000),
    "just-too-large": png(8_001, 8_000),
    "largest-png": png(2**31 - 1, 2**31 - 1),
    **FOREIGN,
    **TRUNCATED,
}


@pytest.mark.parametrize("data", NO_IMAGES.values(), ids=NO_IMAGES.keys())
def test_every_way_in_gives_the_same_sentence(app: App, data: bytes) -> None:
    errors = {
        assert_refused(infer(app, body(tensor(data)))),
        assert_refused(classify(app, data)),
        refused(app, message(bytes_contents=[data])),
        refused(app, message(raw=[elements(data)])),
    }
    assert len(errors) == 1, errors


@pytest.mark.parametrize("data", [b"", b"hello", *FOREIGN.values()])
def test_the_sentence_names_the_accepted_formats(app: App, data: bytes) -> None:
    error = assert_refused(classify(app, data))
    assert all(kind in error for kind in FORMATS), error


@pytest.fixture
def trap() -> Iterator[tuple[str, list[str]]]:
    """The URL of an image, and a list of the requests that it gets."""
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
        yield f"http://127.0.0.1:{listener.server_address[1]}/image.png", visits
        listener.shutdown()


def test_no_address_or_path_is_opened(app: App, trap: tuple[str, list[str]]) -> None:
    url, visits = trap
    for name in (url, "file:///etc/passwd", str(COFFEE), "../../imgs/coffee.jpg", "/dev/zero"):
        assert_refused(classify(app, name.encode()))
        assert_refused(infer(app, body(tensor([name]))))
        assert_refused(infer(app, body(tensor(name.encode()))))
        refused(app, message(bytes_contents=[name.encode()]))
        for parameters in ({"content_type": name}, {"uri": name, "binary_data_size": 5}):
            request = body(tensor(GOOD, parameters=parameters), parameters=parameters)
            assert infer(app, request).status_code == 200, parameters
    assert_refused(classify(app, SVG.replace(b"file:///etc/passwd", url.encode())))
    assert not visits


def test_nothing_is_written_outside_of_the_configured_folders(serve: Serve, tmp_path: Any) -> None:
    """Neither in the home folder nor among temporary files, libraries included."""
    folders = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in folders.values():
        folder.mkdir()
    env = {name: str(folder) for name, folder in folders.items()}
    server = serve(env=env | {"TINYVIT_CACHE_DIR": str(tmp_path / "cache")})
    assert_sane(server)
    refused(server, message(bytes_contents=[b"hello"]))
    assert not [p for folder in folders.values() for p in folder.rglob("*") if p.is_file()]
    assert server.stop() == 0
