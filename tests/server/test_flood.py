"""More load than the server can handle, and a stop during it."""

import signal

import pytest

from tests.support.background_load import MEGABYTE, Load, gone, is_ready
from tests.support.clients import (
    LABEL,
    assert_sane,
    assert_sentence,
    children,
    measured,
    resident,
)
from tests.support.servers import Serve
from tests.support.traffic import GrpcLoad


@pytest.mark.slow
@pytest.mark.exclusive
def test_flood_and_stop(serve: Serve) -> None:
    """Requests get the right answer or 503; SIGTERM loses no accepted request."""
    server = serve(env={"TINYVIT_MAX_QUEUE": "3"})
    assert_sane(server)
    with Load(server, clients=8) as load:
        with GrpcLoad(server.grpc) as calls:
            load.until(right=15)
            before = resident(server)
            load.until(right=30)
            assert resident(server) - before < 150 * MEGABYTE
            assert is_ready(server)
        assert {outcome.split()[0] for outcome in load.counts} == {"right", "503"}, load.counts
        assert measured(server)["tinyvit_refused_busy_requests_count"] > 0
        processes = [server.process.pid, *children(server)]
        assert server.stop(signal.SIGTERM) == 0
    assert set(calls.statuses) == {"OK", "UNAVAILABLE"}, calls.statuses
    assert set(calls.labels) == {LABEL}
    for error in calls.errors:
        assert_sentence(error)
    assert load.counts["wrong"] == 0 and gone(processes)
    assert "Traceback" not in server.output()
