"""A stop answers what was accepted and leaves nothing running, whenever it comes."""

import json
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from select import select

import grpc
import pytest
import requests
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer
from tests.support.background_load import PICTURE, STOPPED_WITHIN, Load, gone
from tests.support.clients import (
    LABEL,
    assert_sane,
    body,
    children,
    classify,
    message,
    tensor,
    text,
    until,
)
from tests.support.servers import Serve


def assert_clean_stop(server: LocalServer, pids: list[int]) -> None:
    assert server.process.returncode == 0
    assert gone(pids)
    output = server.output()
    assert "Traceback" not in output, output[-4000:]
    assert "leaked" not in output, output[-4000:]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(
    serve_workers: Callable[..., LocalServer], count: int, sig: signal.Signals
) -> None:
    """Whatever was accepted is answered; then all processes are gone."""
    server = serve_workers(count)
    with Load(server) as load:
        load.until(right=30)
        pids = [server.process.pid, *children(server)]
        server.process.send_signal(sig)
        server.process.wait(STOPPED_WITHIN)
        until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)
    assert load.counts["wrong"] == 0
    assert set(load.counts) <= {"right", "ConnectionError"} | {
        outcome for outcome in load.counts if outcome.startswith("503 ")
    }, load.counts


@pytest.mark.parametrize("attempt", range(3))
def test_who_connects_at_that_moment_is_answered_or_refused(serve: Serve, attempt: int) -> None:
    """Each request has a connection of its own; none is reset."""
    server, outcomes, over = serve(), Counter[int | str](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                outcomes[classify(server, PICTURE).status_code] += 1
            except requests.ConnectionError as error:
                if "refused" in str(error):
                    return
                outcomes[repr(error)] += 1

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        until(lambda: outcomes[200] > 40)
        assert server.stop() == 0
        over.set()
        for each in asking:
            each.result()
    assert set(outcomes) == {200}, outcomes


def received(port: int) -> int:
    """Bytes that a server has read from the connections to its port that are open now."""
    listed = subprocess.check_output(["ss", "-tinH", "state", "established", f"sport = :{port}"])
    unread = re.findall(rb"^(\d+)", listed, re.M)
    return sum(map(int, re.findall(rb"bytes_received:(\d+)", listed))) - sum(map(int, unread))


@pytest.mark.parametrize("count", [0, 2])
def test_accepted_requests_outlive_a_stop(
    serve_workers: Callable[..., LocalServer], count: int
) -> None:
    """A pile of requests that was read whole before the signal came, over REST and gRPC."""
    server = serve_workers(count)
    assert_sane(server)
    many = json.dumps(body(tensor([text(PICTURE)] * 40)))
    rest = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    with grpc.insecure_channel(server.grpc) as channel:
        rest.request("POST", "/v2/models/tinyvit/infer", many)  # returns when all is sent
        remote = GRPCInferenceServiceStub(channel).ModelInfer.future(
            message([20], bytes_contents=[PICTURE] * 20), timeout=60
        )
        until(lambda: received(server.http_port) > len(many))
        until(lambda: received(server.grpc_port) > 20 * len(PICTURE))
        assert not remote.done() and not select([rest.sock], [], [], 0)[0]
        server.process.send_signal(signal.SIGTERM)
        assert json.load(rest.getresponse())["outputs"][0]["data"][::5] == [LABEL] * 40
        assert remote.result().outputs[0].contents.bytes_contents[0] == LABEL.encode()
    assert server.process.wait(STOPPED_WITHIN) == 0


def test_ctrl_c_reaches_every_process(serve_workers: Callable[..., LocalServer]) -> None:
    """A terminal sends it to the workers too."""
    server = serve_workers(2)
    pids = [server.process.pid, *children(server)]
    os.killpg(server.process.pid, signal.SIGINT)
    server.process.wait(STOPPED_WITHIN)
    until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)


@pytest.mark.parametrize("count", [0, 2])
def test_stop_while_loading(serve_workers: Callable[..., LocalServer], count: int) -> None:
    """At some moments from the first sign of life until the model is loaded."""
    for moment in ("HTTP server running", "Serving"):
        server = serve_workers(count, ready=False)
        until(lambda s=server, m=moment: m in s.output(), 60)
        pids = [server.process.pid, *children(server)]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(STOPPED_WITHIN)
        until(lambda p=pids: gone(p), STOPPED_WITHIN)
        assert_clean_stop(server, pids)


def test_stop_while_converting(serve: Serve, tmp_path: Path) -> None:
    """With a cold cache, another process converts the network; it goes too, and leaves nothing."""
    cache = tmp_path / "cold"
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)}, ready=False)
    until(lambda: "Converting" in server.output(), 60)
    until(lambda: children(server))
    pids = [server.process.pid, *children(server)]
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOPPED_WITHIN)
    until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)})
    assert_sane(server)
