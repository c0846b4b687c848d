"""Runs of the command-line client, and a server that answers it as a script says."""

import contextlib
import json
import signal
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import StringIO
from typing import Any
from unittest import mock

from client import classify
from tests.support.http import Answer, http_server, reply
from tests.support.paths import ROOT
from tests.support.programs import Run

CLASSIFY = [sys.executable, str(ROOT / "client" / "classify.py")]


def run(*arguments: object) -> Run:
    """Run classify.py in this process."""
    output, errors = StringIO(), StringIO()
    handler = signal.getsignal(signal.SIGINT)
    with (
        mock.patch("sys.argv", ["classify.py", *map(str, arguments)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            status = classify.main()
        except SystemExit as end:
            status = int(str(end.code))
        finally:
            signal.signal(signal.SIGINT, handler)
    return Run(status, output.getvalue(), errors.getvalue())


def respond(status: int, body: object, **headers: str) -> Answer:
    """Answer with JSON, or with bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: reply(handler, status, content, **headers)


def outputs(*data: list[Any]) -> Answer:
    """Answer with outputs that hold the data."""
    return respond(200, {"outputs": [{"data": values} for values in data]})


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection, as a server does that closes an idle one."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True


METADATA = respond(200, {"parameters": {}})


@contextlib.contextmanager
def scripted(*steps: Answer, get: Answer = METADATA) -> Iterator[str]:
    """Serve on a free port, with one step for each POST and `get` for each GET; yield the URL."""
    remaining = list(steps)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (get if handler.command == "GET" else remaining.pop(0))(handler)

    with http_server(answer) as url:
        yield url
        assert remaining == []
