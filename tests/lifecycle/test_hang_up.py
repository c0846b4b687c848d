"""The server drops the work of clients that hang up."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

from client.local import LocalServer
from tests.support.background_load import ROUTES, best
from tests.support.clients import LABEL, assert_sane, body, image_file, measured, tensor, text
from tests.support.servers import Serve


def hang_up(server: LocalServer, path: str, data: bytes, share: float = 1) -> None:
    """Send this share of a request and close the connection."""
    head = f"POST /v2/models/tinyvit/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), 10) as connection:
        connection.sendall(head.encode() + data[: int(share * len(data))])


def test_clients_that_hang_up(serve: Serve) -> None:
    """Their images are not computed, and their places in the queue are free at once."""
    server = serve(env={"TINYVIT_NUM_THREADS": "1"})
    assert_sane(server)
    large = image_file("JPEG", (4000, 3000))
    twenty = json.dumps(body(tensor([text(large)] * 20))).encode()
    before = measured(server)["tinyvit_batch_size_images_sum"]
    for _ in range(8):
        hang_up(server, "infer", twenty)
    for share in (0.5, 1):
        for _ in range(20):
            hang_up(server, "classify", large, share)
    assert_sane(server)
    computed = measured(server)["tinyvit_batch_size_images_sum"] - before - 2
    assert computed < 10, f"{computed} of 180 abandoned images"
    with ThreadPoolExecutor(60) as clients:
        found = set(clients.map(lambda _: best(ROUTES["classify"](server)), range(60)))
    assert found == {LABEL}
    assert "Traceback" not in server.output(), server.output()[-4000:]
    assert server.stop() == 0
