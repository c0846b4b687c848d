"""More load than the server can handle, and a stop during it."""

import signal
import threading
from collections import Counter

import grpc
import pytest

from tests.support.background_load import IMAGE, MEGABYTE, Load, gone, is_ready
from tests.support.clients import (
    LABEL,
    assert_sane,
    assert_sentence,
    children,
    measured,
    message,
    resident,
    stub,
)
from tests.support.servers import Serve


@pytest.mark.slow
@pytest.mark.exclusive
def test_flood_and_stop(serve: Serve) -> None:
    """Requests get the right answer or 503; SIGTERM loses no accepted request."""
    server = serve(env={"TINYVIT_MAX_QUEUE": "3"})
    assert_sane(server)
    codes: Counter[str] = Counter()
    ended = threading.Event()

    def send_by_grpc() -> None:
        while not ended.is_set():
            try:
                response = stub(server).ModelInfer(message(bytes_contents=[IMAGE]), timeout=60)
                label = response.outputs[0].contents.bytes_contents[0].decode()
                codes["right" if label == LABEL else label] += 1
            except grpc.RpcError as error:
                assert_sentence(error.details())
                codes[error.code().name] += 1

    threads = [threading.Thread(target=send_by_grpc, daemon=True) for _ in range(4)]
    with Load(server, clients=8) as load:
        for thread in threads:
            thread.start()
        load.until(right=15)
        before = resident(server)
        load.until(right=30)
        assert resident(server) - before < 150 * MEGABYTE
        assert is_ready(server)
        ended.set()
        for thread in threads:
            thread.join(60)
        assert {outcome.split()[0] for outcome in load.counts} == {"right", "503"}, load.counts
        assert measured(server)["tinyvit_refused_busy_requests_count"] > 0
        processes = [server.process.pid, *children(server)]
        assert server.stop(signal.SIGTERM) == 0
    assert set(codes) == {"right", "UNAVAILABLE"}, codes
    assert load.counts["wrong"] == 0 and gone(processes)
    assert "Traceback" not in server.output()
