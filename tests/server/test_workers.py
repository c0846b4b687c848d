"""Workers start where they are asked for; nothing good gets lost where they die or hang."""

import os
import signal
from collections.abc import Callable

import grpc
import pytest
import requests

from clients import assert_refused, assert_sane, message, stub, until, workers
from load import PICTURE, ROUTES, WHOLE_AGAIN_WITHIN, Load, is_ready
from local import LocalServer


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


def test_all_workers_die(serve_workers: Callable[..., LocalServer]) -> None:
    server = serve_workers(2)
    assert_sane(server)
    before = workers(server)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_ready(server), 5)
    assert_refused(ROUTES["infer"](server), 503)
    assert_refused(ROUTES["classify"](server), 503)
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(message(bytes_contents=[PICTURE]), timeout=30)
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
    assert requests.get(f"{server.url}/v2/health/live", timeout=10).ok
    until(lambda: is_ready(server), WHOLE_AGAIN_WITHIN)
    assert_sane(server)
    until(lambda: server.output().count("is now ready") == 2, WHOLE_AGAIN_WITHIN)
    assert len(workers(server)) == 2 and not set(workers(server)) & set(before)
    for _ in range(4):
        assert_sane(server)


def test_worker_that_hangs(serve_workers: Callable[..., LocalServer]) -> None:
    """Its requests end in time, and another takes its place."""
    server = serve_workers(2, env={"TINYVIT_TIMEOUT": "2"})
    with Load(server) as load:
        load.until(right=20)
        victim = workers(server)[0]
        os.kill(victim, signal.SIGSTOP)
        until(lambda: victim not in workers(server), WHOLE_AGAIN_WITHIN)
        until(lambda: server.output().count("is now ready") == 1, WHOLE_AGAIN_WITHIN)
        load.until(right=40)
    assert len(workers(server)) == 2
    kinds = {outcome.split()[0] for outcome in load.counts}
    assert kinds <= {"right", "503", "504"} and "504" in kinds, load.counts
    assert server.stop() == 0
