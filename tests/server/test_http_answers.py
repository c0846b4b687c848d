"""What answers say in HTTP: when to ask again, to whom a browser may show them, and where to."""

import contextlib
import gzip
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from client.local import LocalServer
from tests.support.background_load import altered
from tests.support.browser import Page
from tests.support.clients import COFFEE, LABEL, assert_refused, body, classify, infer, tensor
from tests.support.refusals import GOOD, JSON
from tests.support.servers import Serve, settings as copy_with_workers

FILE = COFFEE.read_bytes()


# --- Retry-After ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_when_to_ask_again(serve: Serve, tmp_path: Path, workers: int) -> None:
    server = serve(folder=copy_with_workers(tmp_path, workers), env={"TINYVIT_MAX_QUEUE": "2"})
    busy: list[requests.Response] = []
    with ThreadPoolExecutor(12) as pool:
        while not busy:
            answers = pool.map(lambda _: classify(server, FILE), range(60))
            busy = [answer for answer in answers if answer.status_code != 200]
    for answer in busy:
        assert_refused(answer, 503)
        assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert "Retry-After" not in classify(server, b"hello").headers


# --- CORS -------------------------------------------------------------------------------------

ASK = """
const done = arguments[arguments.length - 1];
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
fetch(arguments[0], { method: "POST", body: bytes, headers: arguments[2] })
  .then(async (response) => done([response.status, await response.json()]))
  .catch((error) => done([0, String(error)]));
"""


@contextlib.contextmanager
def another_origin() -> Iterator[str]:
    """A page from an address of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()


def test_a_page_of_another_origin(serve: Serve, tmp_path: Path, blank: Page) -> None:
    """With `cors_settings` it may ask, also with JSON and in vain; other origins may not."""
    import base64

    with another_origin() as allowed, another_origin() as stranger:
        cors = {
            "allow_origins": [allowed],
            "allow_methods": ["POST"],
            "allow_headers": ["Content-Type"],
        }
        folder = copy_with_workers(tmp_path, 0)
        altered(folder, "settings.json", lambda s: s | {"cors_settings": cors})
        server = serve(folder=folder)

        def ask(data: bytes, path: str = "classify", **headers: str) -> Any:
            url = f"{server.url}/v2/models/tinyvit/{path}"
            text = base64.b64encode(data).decode()
            return blank.driver.execute_async_script(ASK, url, text, headers)

        request = json.dumps(body(tensor(FILE))).encode()
        blank.driver.get(allowed)
        status, ranking = ask(FILE)
        assert status == 200 and ranking[0]["label"] == LABEL
        status, answer = ask(request, "infer", **JSON)
        assert status == 200 and answer["outputs"][0]["data"][0] == LABEL
        status, answer = ask(b"hello")
        assert status == 400 and "no image" in answer["error"]
        blank.driver.get(stranger)
        assert ask(FILE)[0] == 0
        assert ask(request, "infer", **JSON)[0] == 0


# --- Addresses --------------------------------------------------------------------------------


def asked(server: LocalServer, method: str, path: str) -> requests.Response:
    """By a client that calls the host what it likes, and follows no redirection."""
    return requests.request(
        method,
        f"{server.url}{path}",
        data=GOOD,
        headers={"Host": "evil.example"},
        allow_redirects=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/tinyvit/classify/"),
        ("POST", "/v2/models/tinyvit/infer//"),
        ("GET", "/v2/models/tinyvit/"),
        ("GET", "/v2/models/tinyvit/docs/"),
        ("POST", "/v2/models/nobody/infer/"),
        ("POST", "/v2/models/tinyvit/versions/1/infer/"),
        ("GET", "/v2/health/live/"),
        ("POST", "/v2/repository/index/"),
        ("GET", "/v2/docs/"),
        ("GET", "/v2/"),
        ("GET", "/v2/models/a%3Fb%25/"),
    ],
)
def test_a_slash_too_many(server: LocalServer, method: str, path: str) -> None:
    """The way to the right address does not go by what the request calls the host."""
    answer = asked(server, method, f"{path}?top_k=2")
    assert answer.status_code == 307
    assert answer.headers["Location"] == f"{path.rstrip('/')}?top_k=2"
    assert "evil" not in str(answer.headers) + answer.text


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["nope", "x//", "config", "infer/nope"])
def test_an_address_that_there_is_not(server: LocalServer, method: str, path: str) -> None:
    assert_refused(asked(server, method, f"/v2/models/tinyvit/{path}"), 404)


@pytest.mark.parametrize("path", ["/nope", "/v2/nope/", "//evil.example/", "//", "/v2/models/"])
def test_an_address_of_no_model_that_there_is_not(server: LocalServer, path: str) -> None:
    assert asked(server, "GET", path).status_code == 404


def test_a_slash_too_many_is_followed(server: LocalServer) -> None:
    url = f"{server.url}/v2/models/tinyvit/classify/?top_k=2"
    assert len(requests.post(url, data=FILE, timeout=60).json()) == 2


# --- Encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "Gzip", "deflate", "identity"])
def test_encodings(either_server: LocalServer, encoding: str) -> None:
    data = json.dumps(body(tensor(FILE))).encode()
    pack = {"deflate": zlib.compress, "identity": bytes}.get(encoding.lower(), gzip.compress)
    answer = infer(either_server, pack(data), headers={**JSON, "Content-Encoding": encoding})
    assert answer.json()["outputs"][0]["data"][0] == LABEL
    answer = classify(either_server, pack(FILE), headers={"Content-Encoding": encoding})
    assert answer.json()[0]["label"] == LABEL


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip, br", "x" * 500])
def test_unknown_encodings(either_server: LocalServer, encoding: str) -> None:
    for send in (infer, classify):
        answer = send(either_server, FILE, headers={**JSON, "Content-Encoding": encoding})
        assert "gzip" in assert_refused(answer, 415)


# --- The cache --------------------------------------------------------------------------------


def test_no_start_with_the_cache(serve: Serve, tmp_path: Path) -> None:
    """Which answers with what another model has said."""
    folder = copy_with_workers(tmp_path, 0)
    altered(folder, "settings.json", lambda s: s | {"cache_enabled": True})
    server = serve(folder=folder, ready=False)
    assert server.process.wait(120)
    assert "cache_enabled" in server.output()


# --- As MLServer ------------------------------------------------------------------------------


def test_answers_are_as_mlserver_writes_them(server: LocalServer) -> None:
    """Its order of fields, its headers, and no field that has nothing in it."""
    answer = infer(server, body(tensor(GOOD), id="x", outputs=[{"name": "scores"}]))
    assert list(answer.json()) == ["model_name", "id", "parameters", "outputs"]
    [scores] = answer.json()["outputs"]
    assert list(scores) == ["name", "shape", "datatype", "parameters", "data"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Ce-Id"] == answer.headers["Ce-Requestid"] == "x"


def test_the_metadata_declares_all_outputs(either_server: LocalServer) -> None:
    metadata = requests.get(f"{either_server.url}/v2/models/tinyvit", timeout=60).json()
    declared = {output["name"]: output for output in metadata["outputs"]}
    assert list(declared) == ["labels", "scores", "logits", "embedding"]
    asked = [{"name": name} for name in declared]
    answer = infer(either_server, body(tensor([GOOD64] * 2), outputs=asked)).json()
    for output in answer["outputs"]:
        shape = declared[output["name"]]["shape"]
        assert output["datatype"] == declared[output["name"]]["datatype"]
        assert all(d in (-1, got) for d, got in zip(shape, output["shape"], strict=True))
    assert declared["embedding"]["shape"][1] > 1


GOOD64 = tensor(GOOD)["data"][0]
