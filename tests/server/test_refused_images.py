"""Bytes that are not an image get one sentence, the same over every way in."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
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
from tests.support.http import http_server, reply
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
NO_IMAGES = [b"", b"hello", png(0, 10), png(2**31 - 1, 2**31 - 1), image_file("JPEG")[:300]]


@pytest.mark.parametrize("data", NO_IMAGES)
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

    def answer(handler: BaseHTTPRequestHandler) -> None:
        visits.append(handler.path)
        reply(handler, 200, GOOD)

    with http_server(answer) as url:
        yield f"{url}/image.png", visits


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
