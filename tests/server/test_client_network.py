"""Servers that are down, busy or loading, and connections that break: what the client does."""

import contextlib
import csv
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from client import transport
from client.classify import classify
from client.local import free_ports
from client.pictures import ClientError
from client.transport import Grpc, Rest
from tests.support.clients import COFFEE

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "client/classify.py", *map(str, arguments), str(COFFEE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def labels(done) -> list[str]:
    return [p["label"] for one in json.loads(done.stdout) for p in one["predictions"]]


Step = Callable[[BaseHTTPRequestHandler], None]


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection with a TCP reset, as a server that closes an idle one does."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True


def busy(retry_after: str) -> Step:
    def step(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 503, {"error": "Busy."}, {"Retry-After": retry_after})

    return step


def espresso(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"outputs": [{"data": ["espresso"]}, {"data": [0.9]}]})


def send(handler: BaseHTTPRequestHandler, status: int, body: object, headers=None) -> None:
    content = json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def scripted(*steps: Step) -> Iterator[str]:
    """A server that keeps connections alive and takes one step for each POST; its address."""
    left = list(steps)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            send(self, 200, {"parameters": {}})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            left.pop(0)(self)

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
        assert left == []
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Seconds that urllib3 would have slept between two tries."""
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    return slept


def test_broken_connection_is_tried_again() -> None:
    with scripted(reset, espresso) as url:
        done = run("--json", "--url", url)
    assert done.returncode == 0, done.stderr
    assert labels(done) == ["espresso"]


def test_reused_connection_that_was_closed_is_tried_once_more_without_retries() -> None:
    with scripted(espresso, reset, espresso, reset, reset) as url:
        rest = Rest(url, "tinyvit", retries=0)
        for _ in range(2):
            assert rest.classify(COFFEE, None, "image")[0].label == "espresso"
        with pytest.raises(ClientError, match="No server answers"):
            rest.classify(COFFEE, None, "image")


def test_busy_without_retries_is_told_at_once(pauses) -> None:
    with scripted(busy("1")) as url, pytest.raises(ClientError, match=r"Busy\."):
        Rest(url, "tinyvit", retries=0).classify(COFFEE, None, "image")
    assert pauses == []


@pytest.mark.parametrize(("asked", "waited"), [("3", 3), ("86400", transport.LONGEST_WAIT)])
def test_retry_after_is_honoured_within_a_bound(pauses, asked, waited) -> None:
    with scripted(busy(asked), espresso) as url:
        assert classify(COFFEE, url=url, encoding="image")[0].label == "espresso"
    assert pauses == [waited]


def test_busy_server_is_tried_again(serve) -> None:
    server = serve(env={"TINYVIT_MAX_QUEUE": "1"})
    way = ["--json", "--encoding", "image", "--jobs", 8, "--retries", 20, "--url", server.url]
    done = run(*way, *[COFFEE] * 39)
    assert done.returncode == 0, done.stderr
    assert labels(done)[::5] == ["espresso"] * 40
    assert "refused request" in server.output()


def test_answer_of_another_kind_of_model() -> None:
    def probabilities(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, {"outputs": [{"data": [0.1, 0.9]}]})

    with (
        scripted(probabilities) as url,
        pytest.raises(ClientError, match="labels and their scores"),
    ):
        classify(COFFEE, url=url)


def test_server_down() -> None:
    (port,) = free_ports(1)
    done = run("--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No server answers" in done.stderr
    with pytest.raises(ClientError, match="No server answers"):
        classify(COFFEE, url=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("way", ["rest", "grpc"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_server_that_is_killed_meanwhile(serve, way, jobs) -> None:
    """Each picture has a row, and a server that is gone is not asked for those that are left."""
    server = serve()
    address = ["--url", server.url] if way == "rest" else ["--grpc", server.grpc]
    options = ["--format", "csv", "-k", "1", "--encoding", "image", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "client/classify.py", *options, *address, *[str(COFFEE)] * 400],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = threading.Timer(60, process.kill)  # with the client's own it would be half an hour
    patience.start()
    begun = [process.stdout.readline() for _ in range(4)]  # the head and some pictures
    server.kill()
    left, said = process.stdout.read(), process.stderr.read()
    assert process.wait() == 1
    patience.cancel()
    rows = list(csv.DictReader(io.StringIO("".join(begun) + left)))
    assert len(rows) == 400
    answered = [row["label"] == "espresso" for row in rows]
    assert 3 <= sum(answered) < 400 and answered == sorted(answered, reverse=True)
    assert all("server answers at" in row["error"] for row in rows if not row["label"])
    assert said.count("\n") == 1 and "server answers at" in said


def test_not_ready(serve, tmp_path) -> None:
    """Asked while the network is being converted, which takes seconds."""
    server = serve(env={"TINYVIT_CACHE_DIR": str(tmp_path / "empty")}, ready=False)
    deadline = time.monotonic() + 60
    while "Converting" not in server.output():
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.02)
    done = run("--url", server.url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not ready" in done.stderr


def test_grpc_server_down() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ClientError, match="No gRPC server answers"):
        Grpc(f"127.0.0.1:{port}", "tinyvit").facts()
