"""Bytes that are not an image get one sentence, the same over every way in."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

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

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
XPM = b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #FF0000",\n"a"\n};\n'
FOREIGN = {
    **{kind: image_file(kind) for kind in ("PPM", "ICO", "TGA", "EPS", "PDF", "DDS")},
    "SVG": SVG,
    "XPM": XPM,
    "HTML": b"<html><img src='x.png'></html>",
}
NO_IMAGES = {
    "empty": b"",
    "words": b"hello",
    "signature": b"\x89PNG\r\n\x1a\n",
    "no-width": png(0, 10),
    "just-too-large": png(8_001, 8_000),
    "largest-png": png(2**31 - 1, 2**31 - 1),
    **FOREIGN,
    **{f"{kind}-truncated": image_file(kind)[:300] for kind in ("JPEG", "PNG", "WEBP")},
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


def test_urls_and_paths_are_not_opened(app: App, trap: tuple[str, list[str]]) -> None:
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
    """Libraries write nothing to the home folder or to temporary folders either."""
    folders = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in folders.values():
        folder.mkdir()
    env = {name: str(folder) for name, folder in folders.items()}
    server = serve(env=env | {"TINYVIT_CACHE_DIR": str(tmp_path / "cache")})
    assert_sane(server)
    refused(server, message(bytes_contents=[b"hello"]))
    assert not [p for folder in folders.values() for p in folder.rglob("*") if p.is_file()]
    assert server.stop() == 0
