"""The work of clients that hang up is not done."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from client.local import LocalServer
from tests.support.background_load import ROUTES, best
from tests.support.clients import LABEL, assert_sane, body, image_file, measured, tensor, text
from tests.support.servers import Serve


def hang_up(server: LocalServer, path: str, data: bytes, whole: bool = True) -> None:
    """Sends a request, or half of it, and does not wait for the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), 10) as connection:
        connection.sendall(head.encode() + (data if whole else data[: len(data) // 2]))
        time.sleep(0.02)


def test_clients_that_hang_up(serve: Serve) -> None:
    """Their work is not done, and their places in the queue are free at once."""
    server = serve(env={"TINYVIT_NUM_THREADS": "1"})
    assert_sane(server)
    large = image_file("JPEG", (4000, 3000))
    many = json.dumps(body(tensor([text(large)] * 20))).encode()
    before = measured(server)["tinyvit_batch_size_images_sum"]
    for _ in range(8):
        hang_up(server, "/v2/models/tinyvit/infer", many)
    for _ in range(20):
        hang_up(server, "/v2/models/tinyvit/classify", large, whole=False)
    for _ in range(20):
        hang_up(server, "/v2/models/tinyvit/classify", large)
    started = time.monotonic()
    assert_sane(server)
    assert time.monotonic() - started < 10
    done = measured(server)["tinyvit_batch_size_images_sum"] - before - 2
    assert done < 10, "of 180 images that nobody waits for"
    everyone = ThreadPoolExecutor(60)
    assert set(everyone.map(lambda _: best(ROUTES["classify"](server)), range(60))) == {LABEL}
    assert "Traceback" not in server.output(), server.output()[-4000:]
    assert server.stop() == 0
