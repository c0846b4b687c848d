"""Bodies that are never completed take neither the memory nor the place of others."""

import socket
from contextlib import ExitStack

from client.local import LocalServer
from tests.support.clients import assert_sane
from tests.support.resource_monitor import MEGABYTE, watching

BODIES = 20
SIZE = 60 * MEGABYTE
HELD = 128 * MEGABYTE


def unfinished(server: LocalServer, verb: str) -> socket.socket:
    """A connection with a request of which the last byte is missing."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=60)
    connection.sendall(
        f"POST /v2/models/tinyvit/{verb} HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n"
        "Content-Type: application/json\r\n\r\n".encode()
    )
    piece = b" " * MEGABYTE
    for _ in range(SIZE // MEGABYTE - 1):
        connection.sendall(piece)
    connection.sendall(piece[1:])
    return connection


def refused(connection: socket.socket) -> bool:
    """Whether the server has answered 503; what it still waits for, it has not answered."""
    connection.settimeout(0.1)
    try:
        return b" 503 " in connection.recv(2**12)
    except TimeoutError:
        return False


def test_twenty_of_sixty_megabytes(either_server: LocalServer) -> None:
    with watching(either_server) as watch, ExitStack() as stack:
        connections = []
        for number in range(BODIES):
            verb = ("infer", "classify")[number % 2]
            connections.append(stack.enter_context(unfinished(either_server, verb)))
        given_up = sum(refused(each) for each in connections)
    assert given_up >= BODIES - HELD // SIZE
    assert watch.growth < 200 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.gap < 1
    assert watch.slowest < 1
    assert not watch.failures
    assert_sane(either_server)
