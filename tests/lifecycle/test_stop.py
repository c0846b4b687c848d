"""A stop answers what was accepted and leaves nothing running, whenever it comes."""

import json
import re
import signal
import subprocess
from http.client import HTTPConnection
from pathlib import Path
from select import select

import grpc
import pytest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer
from tests.support.background_load import IMAGE, STOPPED_WITHIN, Load, gone
from tests.support.clients import (
    LABEL,
    assert_sane,
    body,
    children,
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


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(serve: Serve, sig: signal.Signals) -> None:
    """Accepted requests are answered; then all processes are gone."""
    server = serve()
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


def received(port: int) -> int:
    """Bytes that a server has read from the connections to its port that are open now."""
    listed = subprocess.check_output(["ss", "-tinH", "state", "established", f"sport = :{port}"])
    unread = re.findall(rb"^(\d+)", listed, re.M)
    return sum(map(int, re.findall(rb"bytes_received:(\d+)", listed))) - sum(map(int, unread))


def test_accepted_requests_outlive_a_stop(serve: Serve) -> None:
    """A pile of requests that was read whole before the signal came, over REST and gRPC."""
    server = serve()
    assert_sane(server)
    many = json.dumps(body(tensor([text(IMAGE)] * 40)))
    rest = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    with grpc.insecure_channel(server.grpc) as channel:
        rest.request("POST", "/v2/models/tinyvit/infer", many)  # returns when all is sent
        remote = GRPCInferenceServiceStub(channel).ModelInfer.future(
            message([20], bytes_contents=[IMAGE] * 20), timeout=60
        )
        until(lambda: received(server.http_port) > len(many))
        until(lambda: received(server.grpc_port) > 20 * len(IMAGE))
        assert not remote.done() and not select([rest.sock], [], [], 0)[0]
        server.process.send_signal(signal.SIGTERM)
        assert json.load(rest.getresponse())["outputs"][0]["data"][::5] == [LABEL] * 40
        assert remote.result().outputs[0].contents.bytes_contents[0] == LABEL.encode()
    assert server.process.wait(STOPPED_WITHIN) == 0


@pytest.mark.parametrize("moment", ["HTTP server running", "Serving"])
def test_stop_while_loading(serve: Serve, moment: str) -> None:
    """At some moments from the first line of the log until the model is loaded."""
    server = serve(ready=False)
    until(lambda: moment in server.output(), 60)
    pids = [server.process.pid, *children(server)]
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOPPED_WITHIN)
    until(lambda: gone(pids), STOPPED_WITHIN)
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
