"""nginx before servers of a few lines, which break off, refuse and count what they are sent."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from client.local import free_ports
from tests.support.nginx import Front

pytestmark = pytest.mark.slow

KILLER = b"ends who reads it"


class Backend(ThreadingHTTPServer):
    """Answers what it is told to, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status: int | None = 200
        self.bodies: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, *_: object) -> None:
        """Connections that nginx or a test closes are no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.bodies.append(body)
        if self.server.status is None or body == KILLER:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        text = json.dumps({"by": self.server.port, "got": len(body)}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing is to be printed."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, list[Backend]]]:
    backends = [Backend() for _ in range(3)]
    front = Front(tmp_path_factory.mktemp("nginx"), [(each.port, 1) for each in backends])
    try:
        yield front, backends
    finally:
        front.close()
        for each in backends:
            each.shutdown()


@pytest.fixture
def backends(front: tuple[Front, list[Backend]]) -> list[Backend]:
    for each in front[1]:
        each.status = 200
        each.bodies.clear()
    return front[1]


@pytest.fixture
def url(front: tuple[Front, list[Backend]]) -> str:
    return front[0].url


def post(url: str, body: bytes = b"picture", **options: Any) -> requests.Response:
    return requests.post(f"{url}/v2/models/tinyvit/classify", data=body, timeout=20, **options)


def sent(backends: list[Backend]) -> list[bytes]:
    return [body for each in backends for body in each.bodies]


# --- Which requests are repeated --------------------------------------------------------------


def test_a_request_that_ends_a_server_is_sent_to_one(url: str, backends: list[Backend]) -> None:
    for count in range(1, 4):
        answer = post(url, KILLER)
        assert answer.status_code == 502
        assert answer.json() == {
            "error": "The server went away before it answered; the request was not repeated."
        }
        assert sent(backends) == [KILLER] * count
    assert post(url).status_code == 200


def test_neither_is_one_that_was_first_refused(url: str, backends: list[Backend]) -> None:
    """A full replica sends it on, the next breaks: the third never sees it."""
    backends[0].status = 503
    for _ in range(6):
        before = len(sent(backends))
        answer = post(url, KILLER)
        assert answer.status_code == 502
        assert KILLER in sent(backends)
        assert sum(KILLER in each.bodies[-1:] for each in backends) <= 3
        broken = [each for each in backends[1:] if each.bodies]
        assert len(sent(backends[1:])) <= before + 1, broken
        for each in backends:
            each.bodies.clear()


@pytest.mark.parametrize("status", [503, 404])
def test_a_refused_request_goes_to_another(url: str, backends: list[Backend], status: int) -> None:
    backends[0].status = backends[1].status = status
    for _ in range(9):
        answer = post(url, b"x" * 3_000_000)
        assert answer.status_code == 200
        assert answer.json() == {"by": backends[2].port, "got": 3_000_000}


@pytest.mark.parametrize("status", [503, 404])
def test_what_all_refuse_is_refused_in_their_words(
    url: str, backends: list[Backend], status: int
) -> None:
    for each in backends:
        each.status = status
    answer = post(url)
    assert answer.status_code == status
    assert answer.json()["by"] in [each.port for each in backends]
    assert len(sent(backends)) <= len(backends) + 1


@pytest.mark.parametrize("status", [400, 415, 422, 500])
def test_other_answers_are_passed_on_and_asked_for_once(
    url: str, backends: list[Backend], status: int
) -> None:
    for each in backends:
        each.status = status
    answer = post(url)
    assert answer.status_code == status
    assert answer.json()["got"] == len(b"picture")
    assert len(sent(backends)) == 1


def test_a_dead_server_is_passed_over(tmp_path: Path) -> None:
    alive = Backend()
    dead = free_ports(2)
    front = Front(tmp_path, [(dead[0], 1), (alive.port, 1), (dead[1], 1)])
    try:
        for _ in range(9):
            assert post(front.url).json()["by"] == alive.port
        assert len(alive.bodies) == 9
    finally:
        front.close()
        alive.shutdown()


def test_one_clear_error_when_no_server_is_left(tmp_path: Path) -> None:
    front = Front(tmp_path, [(port, 1) for port in free_ports(3)])
    try:
        answer = post(front.url)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.json() == {"error": "No server answers. Try again in a moment."}
    finally:
        front.close()


# --- What is closed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/tinyvit/unload",
        "/v2/repository/models/tinyvit/load",
        "/v2/%72epository/models/tinyvit/unload",
        "//v2//repository/models/tinyvit/unload",
        "/v2/models/../repository/models/tinyvit/unload",
        "/v2/models/%2e%2e%2frepository/models/tinyvit/unload",
    ],
)
def test_repository_api_is_closed(url: str, backends: list[Backend], path: str) -> None:
    request = requests.Request("POST", url, json={}).prepare()
    request.url = url + path
    with requests.Session() as session:
        answer = session.send(request, timeout=10)
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": "The repository API is closed here."}
    assert sent(backends) == []


# --- Bounds -----------------------------------------------------------------------------------


def answer_to(port: int, *pieces: bytes, pause: float = 0, patience: float = 15) -> bytes:
    """What comes back when these bytes are sent; nginx may close before all are."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                received += piece
                if b"\r\n\r\n" in received and received.rstrip().endswith(b"}"):
                    break
    return received


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head, answer
    return int(head.split()[1]), json.loads(body)["error"]


def request_head(*headers: str, path: str = "/v2/models/tinyvit/classify") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request_head("X: " + "a" * 9000), 431),
        (request_head(*[f"X-{i}: {'a' * 1000}" for i in range(60)]), 431),
        (request_head(path="/" + "a" * 9000), 414),
        (request_head("Content-Length: x"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request_head("Content-Length: 67108865"), 413),
    ],
    ids=["long header", "many headers", "long URL", "no number", "no host", "large body"],
)
def test_bounds_on_the_head(
    front: tuple[Front, list[Backend]], backends: list[Backend], head: bytes, status: int
) -> None:
    found, error = error_of(answer_to(front[0].http_port, head))
    assert found == status
    assert error.endswith(".")
    assert sent(backends) == []


def test_what_is_within_the_bounds_passes(url: str, backends: list[Backend]) -> None:
    headers = {f"X-{i}": "a" * 1000 for i in range(20)}
    answer = requests.get(f"{url}/{'a' * 7000}", headers=headers, timeout=10)
    assert answer.status_code == 200


def test_endless_headers_and_bodies_are_given_up(front: tuple[Front, list[Backend]]) -> None:
    """Within 10 s of the header's begin, and 10 s after the body's last piece."""
    port = front[0].http_port
    found: dict[str, tuple[float, bytes]] = {}

    def trickle(name: str, *pieces: bytes, pause: float) -> None:
        begun = time.monotonic()
        received = answer_to(port, *pieces, pause=pause, patience=20)
        found[name] = (time.monotonic() - begun, received)

    lines = [b"POST / HTTP/1.1\r\nHost: a\r\n"] + [b"X: a\r\n"] * 12
    unfinished = request_head("Content-Length: 1000") + b"begun"
    threads = [
        threading.Thread(target=trickle, args=("headers", *lines), kwargs={"pause": 1}),
        threading.Thread(target=trickle, args=("body", unfinished), kwargs={"pause": 0}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (seconds, received) in found.items():
        assert 9 < seconds < 15, (name, seconds)
        assert b" 200 " not in received


def test_unfinished_bodies_are_counted(
    front: tuple[Front, list[Backend]], url: str, backends: list[Backend]
) -> None:
    """Probes are not; and the place of a request is free again when it is over."""
    head = request_head("Content-Length: 60000000")
    with contextlib.ExitStack() as stack:
        for _ in range(384):
            address = ("127.0.0.1", front[0].http_port)
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(head + b"begun")
        time.sleep(0.5)
        refusal = post(url)
        assert refusal.status_code == 429
        assert refusal.headers["Retry-After"] == "1"
        assert "Too many requests" in refusal.json()["error"]
        assert requests.get(f"{url}/v2/health/ready", timeout=5).status_code == 200
    time.sleep(0.5)
    assert post(url).status_code == 200
