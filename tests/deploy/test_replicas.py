"""Three servers behind nginx: one is killed, restarted, and gets other weights under load."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
import requests
from mlserver.grpc import (
    dataplane_pb2 as pb,
    dataplane_pb2_grpc as services,
    model_repository_pb2 as mr,
)
from mlserver.grpc.model_repository_pb2_grpc import ModelRepositoryServiceStub

from client.local import LocalServer, free_ports, start
from tests.support.clients import measured, message, until
from tests.support.exports import export
from tests.support.nginx import Front
from tests.support.paths import ROOT
from tests.support.traffic import IMAGE, LABEL, GrpcLoad, Load

pytestmark = pytest.mark.slow

CLIENTS = 6
NEW_LABEL = "class 967"
"""The name of LABEL's class in other weights."""


class Replicas:
    """nginx before three servers of one thread each; a server can stop and restart on its ports."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._ports = [free_ports(3) for _ in range(3)]
        self.servers = [self.start(number) for number in range(3)]
        self.front = Front(folder, [(http, calls) for http, calls, _ in self._ports])

    def start(self, number: int, **variables: str) -> LocalServer:
        ports = dict(zip(("HTTP", "GRPC", "METRICS"), self._ports[number], strict=True))
        mine = {f"MLSERVER_{name}_PORT": str(port) for name, port in ports.items()}
        mine["MLSERVER_METRICS_DIR"] = str(self._folder / f"metrics-{number}")
        mine["TINYVIT_NUM_THREADS"] = "1"
        log = self._folder / f"server-{number}.log"
        environment = {**self._environment, **mine, **variables}
        server = start(ROOT / "tinyvit", environment, log, self._folder)
        server.http_port, server.grpc_port, server.metrics_port = self._ports[number]
        return server

    def restart(self, number: int, **variables: str) -> None:
        self.servers[number] = self.start(number, **variables)
        self.servers[number].wait()

    def close(self) -> None:
        self.front.close()
        for server in self.servers:
            server.kill()


@pytest.fixture(scope="module")
def replicas(
    environment: Mapping[str, str], exported_sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    three = Replicas(folder, {**environment, "MLSERVER_MODEL_URI": str(exported_sample)})
    try:
        for each in three.servers:
            each.wait()
        yield three
    finally:
        three.close()


@pytest.fixture
def url(replicas: Replicas) -> str:
    return replicas.front.url


def batches(server: LocalServer) -> float:
    """Return how many batches the replica has computed."""
    return measured(server)["tinyvit_batch_size_images_count"]


def test_the_load_is_balanced(replicas: Replicas, url: str) -> None:
    before = [batches(each) for each in replicas.servers]
    with Load(url, CLIENTS) as load:
        load.more(90)
    assert set(load.statuses) == {200}, load.statuses
    shares = [batches(each) - was for each, was in zip(replicas.servers, before, strict=True)]
    assert min(shares) > 5, shares
    assert set(load.labels) == {LABEL}


def test_a_killed_replica_loses_only_the_requests_that_it_had(replicas: Replicas, url: str) -> None:
    """They get 502: another replica might crash on the same request."""
    with Load(url, CLIENTS) as load:
        load.more(40)
        os.killpg(replicas.servers[0].process.pid, signal.SIGKILL)
        replicas.servers[0].process.wait()
        load.more(60)
        lost = load.statuses[502]
        replicas.restart(0)
        until(lambda: batches(replicas.servers[0]) > 3)
        assert load.statuses[502] == lost
    assert set(load.statuses) <= {200, 502}, load.statuses
    assert lost <= CLIENTS
    assert set(load.labels) == {LABEL}


def test_a_rolling_update_loses_no_request(replicas: Replicas, url: str, renamed: Path) -> None:
    """The steps of replicas.conf: take a replica out, stop it, start it, put it back."""
    with Load(url, CLIENTS) as load:
        for number in range(3):
            load.more(20)
            replicas.front.take_out(number)
            assert replicas.servers[number].stop() == 0
            replicas.restart(number, MLSERVER_MODEL_URI=str(renamed))
            replicas.front.take_out()
        load.more(CLIENTS)
        assert set(load.labels) == {LABEL, NEW_LABEL}
        load.labels.clear()
        load.more(30)
        assert set(load.labels) == {NEW_LABEL}
    assert set(load.statuses) == {200}, load.statuses


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    """An export of the sample with other names of classes."""
    checkpoint, exported = tmp_path / "renamed", tmp_path / "exported"
    shutil.copytree(ROOT / "tinyvit" / "sample", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["label_names"] = [f"class {number}" for number in range(config["num_classes"])]
    (checkpoint / "config.json").write_text(json.dumps(config))
    return export(checkpoint, exported)


# --- gRPC -------------------------------------------------------------------------------------


@pytest.fixture
def stub(replicas: Replicas) -> Iterator[services.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(replicas.front.grpc_address) as channel:
        yield services.GRPCInferenceServiceStub(channel)


def test_grpc_calls_fail_only_in_a_killed_replica(replicas: Replicas, tmp_path: Path) -> None:
    """One replica converts its checkpoint, and is halted while it does; another is killed."""
    replicas.servers[0].kill()
    sample = str(ROOT / "tinyvit" / "sample")
    converts = {"MLSERVER_MODEL_URI": sample, "TINYVIT_CACHE_DIR": str(tmp_path / "cache")}
    loading = replicas.servers[0] = replicas.start(0, **converts)
    until(lambda: requests.get(f"{loading.url}/v2/health/live", timeout=5).ok)
    loading.process.send_signal(signal.SIGSTOP)
    with GrpcLoad(replicas.front.grpc_address, CLIENTS) as load:
        load.more(40)
        assert set(load.statuses) == {"OK"}
        os.killpg(replicas.servers[1].process.pid, signal.SIGKILL)
        replicas.servers[1].process.wait()
        load.more(60)
    assert load.statuses.keys() <= {"OK", "INTERNAL"}, load.statuses
    assert load.statuses["INTERNAL"] <= CLIENTS
    assert load.labels.keys() <= {LABEL, NEW_LABEL}
    loading.kill()
    for number in range(2):
        replicas.restart(number)


def test_the_repository_api_is_closed_over_grpc(
    replicas: Replicas, stub: services.GRPCInferenceServiceStub
) -> None:
    """MLServer offers it as a part of the inference service, and as a service of its own."""
    one = {"model_name": "tinyvit"}
    with grpc.insecure_channel(replicas.front.grpc_address) as channel:
        own = ModelRepositoryServiceStub(channel)
        for service, types in ((stub, pb), (own, mr)):
            for call, request in (
                (service.RepositoryIndex, types.RepositoryIndexRequest()),
                (service.RepositoryModelLoad, types.RepositoryModelLoadRequest(**one)),
                (service.RepositoryModelUnload, types.RepositoryModelUnloadRequest(**one)),
            ):
                with pytest.raises(grpc.RpcError) as refusal:
                    call(request, timeout=10)
                assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED
                assert "closed here" in refusal.value.details()
    assert stub.ModelReady(pb.ModelReadyRequest(name="tinyvit"), timeout=10).ready


def test_the_access_log_has_status_and_replicas_of_each_call(
    replicas: Replicas, stub: services.GRPCInferenceServiceStub
) -> None:
    def calls() -> list[dict[str, str]]:
        return [json.loads(line) for line in replicas.front.access_log if "ModelInfer" in line]

    before = len(calls())
    stub.ModelInfer(message(bytes_contents=[IMAGE]), timeout=20)
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(message(bytes_contents=[b"no image"]), timeout=20)
    until(lambda: len(calls()) == before + 2)  # nginx writes a line after the response
    assert [call["grpc_status"] for call in calls()[before:]] == ["0", "3"]
    tried = {replica for call in calls()[before:] for replica in call["replica"].split(", ")}
    assert tried <= {f"127.0.0.1:{each.grpc_port}" for each in replicas.servers}


def test_grpc_has_one_clear_error_without_any_server(
    replicas: Replicas, stub: services.GRPCInferenceServiceStub
) -> None:
    """The module's last test: it ends all servers."""
    for server in replicas.servers:
        server.kill()
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(message(bytes_contents=[IMAGE]), timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
    assert refusal.value.details() == "No server answers. Try again in a moment."
