"""Workers start where they are asked for; nothing good gets lost where they die or hang."""

import os
import signal
from collections.abc import Callable

from client.local import LocalServer
from tests.support.background_load import WHOLE_AGAIN_WITHIN, Load, is_ready
from tests.support.clients import assert_sane, until, workers


def test_worker_starts(worker_server: LocalServer) -> None:
    """What a newer uvloop prevents; the worker answers, and is no other than at the start."""
    (worker,) = workers(worker_server)
    assert_sane(worker_server)
    assert workers(worker_server) == [worker]


def test_no_worker_without_the_setting(server: LocalServer) -> None:
    assert workers(server) == []


def test_one_worker_dies_under_load(serve_workers: Callable[..., LocalServer]) -> None:
    server = serve_workers(2)
    with Load(server) as load:
        load.until(right=20)
        for kill in (1, 2):
            before = workers(server)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            until(lambda victim=before[0]: victim not in workers(server), 5)
            assert is_ready(server)  # the other one serves
            load.until(right=20)
            until(lambda n=kill: server.output().count("is now ready") == n, WHOLE_AGAIN_WITHIN)
            assert len(workers(server)) == 2
            load.until(right=20)
    assert load.counts["wrong"] == 0
    strange = {o for o in load.counts if o != "right" and not o.startswith("503 ")}
    assert not strange, load.counts
    assert load.counts.total() - load.counts["right"] <= 2 * load.clients, load.counts
