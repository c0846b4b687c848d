"""HTTP itself: paths, methods, encodings, CORS."""

import base64
import gzip
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import App
from tests.support.background_load import altered
from tests.support.browser import Page
from tests.support.clients import (
    COFFEE,
    LABEL,
    assert_refused,
    body,
    classify,
    infer,
    request,
    tensor,
)
from tests.support.folders import copy_runtime
from tests.support.http import http_server, reply
from tests.support.refusals import GOOD, JSON
from tests.support.servers import Serve

FILE = COFFEE.read_bytes()
MODEL = "/v2/models/tinyvit"

# --- Paths and methods ------------------------------------------------------------------------


def request_from_evil_host(app: App, method: str, path: str) -> Any:
    return request(app, method, path, data=GOOD, headers={"Host": "evil.example"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{MODEL}/classify/"),
        ("POST", f"{MODEL}/infer//"),
        ("GET", f"{MODEL}/docs/"),
        ("POST", "/v2/models/nobody/infer/"),
        ("GET", "/v2/health/live/"),
        ("POST", "/v2/repository/index/"),
        ("GET", "/v2/models/a%3Fb%25/"),
    ],
)
def test_a_trailing_slash_redirects_without_the_host(app: App, method: str, path: str) -> None:
    response = request_from_evil_host(app, method, f"{path}?top_k=2")
    assert response.status_code == 307
    assert response.headers["Location"] == f"{path.rstrip('/')}?top_k=2"
    assert "evil" not in str(response.headers) + response.text


@pytest.mark.parametrize("path", ["nope", "x//", "config", "infer/nope"])
def test_unknown_path_of_the_model(app: App, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert_refused(request_from_evil_host(app, method, f"{MODEL}/{path}"), 404)


@pytest.mark.parametrize("path", ["/nope", "/v2/nope/", "//evil.example/", "//", "/../etc/passwd"])
def test_unknown_path(app: App, path: str) -> None:
    assert request_from_evil_host(app, "GET", f"http://app{path}").status_code == 404


@pytest.mark.parametrize(("method", "path"), [("DELETE", "infer"), ("GET", "classify")])
def test_unsupported_method(app: App, method: str, path: str) -> None:
    assert_refused(request(app, method, f"{MODEL}/{path}"), 405)


# --- Encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["GZIP", "x-gzip", "deflate", "identity"])
def test_content_encoding(app: App, encoding: str) -> None:
    data = json.dumps(body(tensor(FILE))).encode()
    pack = {"deflate": zlib.compress, "identity": bytes}.get(encoding.lower(), gzip.compress)
    headers = {"Content-Encoding": encoding}
    response = infer(app, pack(data), headers=JSON | headers)
    assert response.json()["outputs"][0]["data"][0] == LABEL
    assert classify(app, pack(FILE), headers=headers).json()[0]["label"] == LABEL


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 500])
@pytest.mark.parametrize("send", [infer, classify])
def test_unsupported_content_encoding(app: App, encoding: str, send: Any) -> None:
    response = send(app, FILE, headers={**JSON, "Content-Encoding": encoding})
    assert "gzip" in assert_refused(response, 415)


# --- CORS -------------------------------------------------------------------------------------

FETCH = """
const done = arguments[arguments.length - 1];
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
fetch(arguments[0], { method: "POST", body: bytes, headers: arguments[2] })
  .then(async (response) => done([response.status, await response.json()]))
  .catch((error) => done([0, String(error)]));
"""


def empty_page(handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, b"<!doctype html><title>elsewhere</title>", Content_Type="text/html")


def test_only_allowed_origins_read_responses(serve: Serve, tmp_path: Path, blank: Page) -> None:
    """A page of an allowed origin reads answers and refusals, also of a busy server."""
    with http_server(empty_page) as allowed, http_server(empty_page) as stranger:
        cors = {
            "allow_origins": [allowed],
            "allow_methods": ["POST"],
            "allow_headers": ["Content-Type"],
        }
        folder = copy_runtime(tmp_path)
        altered(folder, "settings.json", lambda s: s | {"cors_settings": cors})
        server = serve(folder=folder, env={"TINYVIT_MAX_QUEUE": "1"})

        def fetch(data: bytes, path: str = "classify", **headers: str) -> Any:
            text = base64.b64encode(data).decode()
            url = f"{server.url}{MODEL}/{path}"
            return blank.driver.execute_async_script(FETCH, url, text, headers)

        request_body = json.dumps(body(tensor(FILE))).encode()
        blank.driver.get(allowed)
        status, ranking = fetch(FILE)
        assert status == 200 and ranking[0]["label"] == LABEL
        status, answer = fetch(request_body, "infer", **JSON)
        assert status == 200 and answer["outputs"][0]["data"][0] == LABEL
        status, answer = fetch(b"hello")
        assert status == 400 and "not a supported image" in answer["error"]
        blank.driver.get(stranger)
        assert fetch(FILE)[0] == 0
        assert fetch(request_body, "infer", **JSON)[0] == 0

        statuses: set[int] = set()
        with ThreadPoolExecutor(8) as pool:
            while 503 not in statuses:
                for response in pool.map(
                    lambda _: classify(server, FILE, headers={"Origin": allowed}), range(16)
                ):
                    statuses.add(response.status_code)
                    assert response.headers["access-control-allow-origin"] == allowed
        assert statuses == {200, 503}
