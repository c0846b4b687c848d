"""A stop answers accepted requests and leaves no process, at any moment."""

import json
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    classify,
    message,
    tensor,
    text,
    until,
)
from tests.support.exports import export
from tests.support.paths import RUNTIME, SAMPLE
from tests.support.servers import Serve, write_model


def assert_stops(server: LocalServer, sig: signal.Signals = signal.SIGTERM) -> None:
    """Assert that a signal ends the server in time, without a fault, and all of its processes."""
    pids = [server.process.pid, *children(server)]
    server.process.send_signal(sig)
    assert server.process.wait(STOPPED_WITHIN) == 0
    until(lambda: gone(pids), STOPPED_WITHIN)
    output = server.output()
    assert "Traceback" not in output, output[-4000:]
    assert "leaked" not in output, output[-4000:]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(serve: Serve, sig: signal.Signals) -> None:
    """No accepted request is lost, and no process is left."""
    server = serve()
    with Load(server) as load:
        load.until(right=30)
        assert_stops(server, sig)
    assert load.counts["wrong"] == 0
    assert set(load.counts) <= {"right", "ConnectionError"} | {
        outcome for outcome in load.counts if outcome.startswith("503 ")
    }, load.counts


def received(port: int) -> int:
    """Return the bytes that a server has read from the open connections to its port."""
    listed = subprocess.check_output(["ss", "-tinH", "state", "established", f"sport = :{port}"])
    unread = re.findall(rb"^(\d+)", listed, re.M)
    return sum(map(int, re.findall(rb"bytes_received:(\d+)", listed))) - sum(map(int, unread))


def test_accepted_requests_outlive_a_stop(serve: Serve) -> None:
    """Sixty images, read completely before the signal, over REST and gRPC."""
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
    """Right after the HTTP port opens, and right before the model is ready."""
    server = serve(ready=False)
    until(lambda: moment in server.output(), 60)
    assert_stops(server)


def test_a_signal_to_all_processes_while_another_model_converts(
    serve: Serve, tmp_path: Path, small_checkpoint: Path
) -> None:
    """As Ctrl-C and systemd send it, to the converter, too; the accepted request is answered."""
    extra = {"TINYVIT_CACHE_DIR": str(tmp_path / "cold"), "PYTHONPATH": str(RUNTIME)}
    folder = tmp_path / "repository"
    exported = export(SAMPLE, tmp_path / "exported")
    for name, uri in (("first", exported), ("second", small_checkpoint)):
        settings = {"parameters": {"uri": str(uri)}, "max_batch_size": 8, "max_batch_time": 3}
        write_model(folder / name, name, **settings)
    shutil.copy(RUNTIME / "settings.json", folder)
    server = serve(folder=folder, env=extra, ready=False)
    server.wait(model="first")
    until(lambda: children(server))
    with ThreadPoolExecutor(1) as client:
        work = client.submit(classify, server, IMAGE, model="first")
        until(lambda: received(server.http_port) > len(IMAGE))
        os.killpg(server.process.pid, signal.SIGTERM)
        assert work.result().status_code == 200
    assert server.process.wait(STOPPED_WITHIN) == 0
    assert "Traceback" not in server.output(), server.output()[-4000:]


def test_stop_while_converting(serve: Serve, tmp_path: Path) -> None:
    """With an empty cache, a child process converts the network. It ends, too, and the next start
    works."""
    cache = tmp_path / "cold"
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)}, ready=False)
    until(lambda: "Converting" in server.output(), 60)
    until(lambda: children(server))
    assert_stops(server)
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)})
    assert_sane(server)
