"""What is no image gets one sentence, the same by whichever way it came."""

import http.server
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from client.local import LocalServer
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
from tests.support.refusals import GOOD, png, refused
from tests.support.servers import Serve, settings


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


@pytest.mark.parametrize("top_k", ["0", "-1", "true", "x", "2.5", ""])
def test_top_k_of_classify(sane_server: LocalServer, top_k: str) -> None:
    error = assert_refused(classify(sane_server, GOOD, params={"top_k": top_k}))
    assert "1 to 1000" in error


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
        ("DELETE", "/v2/models/tinyvit/infer", 405),
        ("GET", "/v2/models/tinyvit/classify", 405),
    ):
        response = requests.request(method, sane_server.url + path, timeout=60)
        assert_refused(response, status)
    for path in ("/v2/nothing", "/../../etc/passwd"):
        assert requests.get(sane_server.url + path, timeout=60).status_code == 404
    for path in ("nobody/infer", "tinyvit/versions/7/infer"):
        url = f"{sane_server.url}/v2/models/{path}"
        response = requests.post(url, json=body(tensor(GOOD)), timeout=60)
        assert response.status_code == 404
        assert "not found" in response.json()["error"]
