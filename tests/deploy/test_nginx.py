"""The shipped nginx before stub servers that break off, refuse and count requests."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc.dataplane_pb2 import ServerLiveRequest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import free_ports
from tests.support.clients import until
from tests.support.http import http_server, reply
from tests.support.nginx import Front

pytestmark = pytest.mark.slow

POISON = b"crashes the server that reads it"
CLASSIFY = "/v2/models/tinyvit/classify"


class Backend:
    """A server that answers with one status and keeps every body and its request id."""

    def __init__(self) -> None:
        self.port = 0
        self.status = 200
        self.bodies: list[bytes] = []
        self.identifiers: dict[bytes, str] = {}

    def answer(self, handler: Any) -> None:
        self.bodies.append(handler.body)
        self.identifiers[handler.body] = handler.headers["X-Request-Id"]
        if handler.body == POISON and self.status == 200:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        text = json.dumps({"by": self.port, "got": len(handler.body)}).encode()
        reply(handler, self.status, text, Content_Type="application/json")


@contextlib.contextmanager
def running_backend() -> Iterator[Backend]:
    backend = Backend()
    with http_server(backend.answer) as url:
        backend.port = int(url.rpartition(":")[2])
        yield backend


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, list[Backend]]]:
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(running_backend()) for _ in range(3)]
        ports = [(each.port, each.port) for each in backends]
        with contextlib.closing(Front(tmp_path_factory.mktemp("nginx"), ports)) as front:
            yield front, backends


@pytest.fixture
def backends(front: tuple[Front, list[Backend]]) -> list[Backend]:
    for backend in front[1]:
        backend.status = 200
        backend.bodies.clear()
    return front[1]


@pytest.fixture
def url(front: tuple[Front, list[Backend]]) -> str:
    return front[0].url


def post(url: str, body: bytes = b"image") -> requests.Response:
    return requests.post(url + CLASSIFY, data=body, timeout=20)


def sent(backends: list[Backend]) -> list[bytes]:
    return [body for backend in backends for body in backend.bodies]


# --- Which requests are repeated --------------------------------------------------------------


def test_a_request_that_crashes_a_server_is_not_repeated(url: str, backends: list[Backend]) -> None:
    for count in range(1, 4):
        response = post(url, POISON)
        assert response.status_code == 502
        assert response.json() == {
            "error": "The server closed the connection; the request was not repeated."
        }
        assert sent(backends) == [POISON] * count
    assert post(url).status_code == 200


def test_a_crashing_request_is_not_repeated_after_a_503(url: str, backends: list[Backend]) -> None:
    """A full replica answers 503 and the next one crashes; the third does not get the request."""
    backends[0].status = 503
    for _ in range(6):
        assert post(url, POISON).status_code == 502
        assert len(sent(backends[1:])) == 1, sent(backends)
        for backend in backends:
            backend.bodies.clear()


@pytest.mark.parametrize("status", [503, 404])
def test_a_refused_request_goes_to_another_server(
    url: str, backends: list[Backend], status: int
) -> None:
    backends[0].status = backends[1].status = status
    for _ in range(9):
        assert post(url, b"x" * 3_000_000).json() == {"by": backends[2].port, "got": 3_000_000}


@pytest.mark.parametrize(("status", "most"), [(503, 5), (404, 5), (400, 1), (415, 1), (500, 1)])
def test_a_response_of_all_servers_is_passed_on(
    url: str, backends: list[Backend], status: int, most: int
) -> None:
    for backend in backends:
        backend.status = status
    response = post(url)
    assert response.status_code == status
    assert response.json()["by"] in [backend.port for backend in backends]
    assert len(sent(backends)) <= most, sent(backends)


@pytest.mark.parametrize("status", [503, 404])
def test_a_refused_request_goes_past_a_dead_server(
    tmp_path: Path, backends: list[Backend], status: int
) -> None:
    """Also if all others refuse it: then their answer or 503 says that it may be repeated."""
    first, second, _ = backends
    ports = [first.port, *free_ports(1), second.port]

    def answers() -> list[requests.Response]:
        """Return the answers to four clients: nginx prefers servers without connections."""
        with ThreadPoolExecutor(4) as clients:
            return list(clients.map(lambda _: post(front.url), range(60)))

    with contextlib.closing(Front(tmp_path, [(port, 1) for port in ports])) as front:
        first.status = status
        assert {answer.json().get("by") for answer in answers()} == {second.port}
        second.status = status
        assert {answer.status_code for answer in answers()} <= {status, 503}


def test_one_clear_error_without_any_server(tmp_path: Path) -> None:
    with contextlib.closing(Front(tmp_path, [(port, 1) for port in free_ports(3)])) as front:
        response = post(front.url)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert response.json() == {"error": "No server answers. Try again in a moment."}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/tinyvit/unload",
        "/v2/%72epository/models/tinyvit/unload",
        "//v2//repository/models/tinyvit/unload",
        "/v2/models/../repository/models/tinyvit/unload",
        "/v2/models/%2e%2e%2frepository/models/tinyvit/unload",
    ],
)
def test_the_repository_api_is_closed(url: str, backends: list[Backend], path: str) -> None:
    request = requests.Request("POST", url, json={}).prepare()
    request.url = url + path
    with requests.Session() as session:
        response = session.send(request, timeout=10)
    assert response.status_code == 403
    assert response.json() == {"error": "The repository API is closed here."}
    assert sent(backends) == []


# --- Limits -----------------------------------------------------------------------------------


def exchange(port: int, *pieces: bytes, pause: float = 0) -> bytes:
    """Return the response to these bytes; nginx may close before it gets all of them."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
        contextlib.suppress(ConnectionError),
    ):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        while piece := connection.recv(65536):
            received += piece
            if b"\r\n\r\n" in received and received.rstrip().endswith(b"}"):
                break
    return received


def head(*headers: str, path: str = CLASSIFY) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


HEADS = {
    "long header": (head("X: " + "a" * 9000), 431),
    "many headers": (head(*[f"X-{i}: {'a' * 1000}" for i in range(60)]), 431),
    "long URL": (head(path="/" + "a" * 9000), 414),
    "no number": (head("Content-Length: x"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "large body": (head("Content-Length: 67108865"), 413),
}


@pytest.mark.parametrize("name", HEADS)
def test_limits_of_the_head(
    front: tuple[Front, list[Backend]], backends: list[Backend], name: str
) -> None:
    request, status = HEADS[name]
    start, _, body = exchange(front[0].http_port, request).partition(b"\r\n\r\n")
    assert int(start.split()[1]) == status
    assert b"application/json" in start and json.loads(body)["error"].endswith(".")
    assert sent(backends) == []


def test_a_large_head_within_the_limits_passes(url: str, backends: list[Backend]) -> None:
    headers = {f"X-{i}": "a" * 1000 for i in range(20)}
    response = requests.get(f"{url}/{'a' * 7000}", headers=headers, timeout=10)
    assert response.status_code == 200


UNFINISHED: dict[str, list[bytes]] = {
    "headers": [b"POST / HTTP/1.1\r\nHost: a\r\n", *[b"X: a\r\n"] * 12],
    "body": [head("Content-Length: 1000") + b"begun"],
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_request_is_closed(front: tuple[Front, list[Backend]], name: str) -> None:
    """After 10 s; the test's own connection has 20 s."""
    pause = 1 if name == "headers" else 0
    assert b" 200 " not in exchange(front[0].http_port, *UNFINISHED[name], pause=pause)


def test_requests_under_way_are_limited_and_probes_are_not(
    front: tuple[Front, list[Backend]], url: str, backends: list[Backend]
) -> None:
    address = ("127.0.0.1", front[0].http_port)
    with contextlib.ExitStack() as stack:
        for count in range(390):  # those that are too many are closed
            if count == 370:
                assert post(url).status_code == 200
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(head("Content-Length: 60000000") + b"begun")
        until(lambda: post(url).status_code == 429)
        refusal = post(url)
        assert refusal.status_code == 429
        assert refusal.headers["Retry-After"] == "1"
        assert "Too many requests" in refusal.json()["error"]
        probe = f"{url}/v2/health/ready"
        assert requests.get(probe, timeout=5).status_code == 200
        assert requests.post(probe, b"a body", timeout=5).status_code == 429
    until(lambda: post(url).status_code == 200)


@pytest.mark.parametrize(
    ("metadata", "code"), [({}, "INTERNAL"), ({"x-long": "a" * 9000}, "UNAVAILABLE")]
)
def test_grpc_calls_end_with_the_documented_code(
    front: tuple[Front, list[Backend]], metadata: dict[str, str], code: str
) -> None:
    """The stub servers close a connection of HTTP/2, as a server that dies while it answers."""
    with grpc.insecure_channel(front[0].grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.ServerLive(ServerLiveRequest(), timeout=10, metadata=tuple(metadata.items()))
    assert refusal.value.code().name == code


# --- Access log -------------------------------------------------------------------------------


def logged(front: Front, text: str) -> dict[str, str]:
    """Return the log line that contains the text; nginx writes it after the response."""
    lines = until(lambda: [line for line in front.access_log if text in line])
    return json.loads(lines[-1])


def test_the_access_log_is_json_and_has_the_id_that_the_server_gets(
    front: tuple[Front, list[Backend]], url: str, backends: list[Backend]
) -> None:
    requests.get(f"{url}/v2/health/live", timeout=5)
    requests.post(url + CLASSIFY, b"with id", headers={"X-Request-Id": "cats-1"}, timeout=5)
    requests.post(url + CLASSIFY, b"without id", timeout=5)
    received = {body: i for backend in backends for body, i in backend.identifiers.items()}
    assert received[b"with id"] == "cats-1"
    for identifier in (received[b"with id"], received[b"without id"]):
        line = logged(front[0], identifier)
        expected = {"request_id": identifier, "method": "POST", "uri": CLASSIFY, "status": "200"}
        assert expected.items() <= line.items()
    assert not any("/v2/health/live" in line for line in front[0].access_log)


def test_the_access_log_cuts_a_clients_text(front: tuple[Front, list[Backend]], url: str) -> None:
    headers = {"X-Request-Id": "a" * 5000}
    requests.get(f"{url}/cut/{'b' * 5000}", headers=headers, timeout=5)
    line = logged(front[0], "/cut/")
    assert len(line["uri"]) == 200 and "aaa" not in line["request_id"]


def test_one_variable_turns_the_access_log_off(tmp_path: Path) -> None:
    with (
        running_backend() as backend,
        contextlib.closing(Front(tmp_path, [(backend.port, 1)], access_log=False)) as front,
    ):
        assert post(front.url).status_code == 200
    assert (tmp_path / "access.log").read_text() == ""
