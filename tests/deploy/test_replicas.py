"""Three servers behind nginx: one is killed, restarted, and given other weights under load."""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from conftest import ROOT
from front import Front, until
from local import LocalServer, free_ports, start
from traffic import LABEL, Load

CLIENTS = 6


class Replicas:
    """Servers of one thread each on fixed ports, which can go and come back, and nginx."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._ports = [free_ports(3) for _ in range(3)]
        self.servers = [self.start(number) for number in range(3)]
        self.front = Front(folder, [(http, grpc) for http, grpc, _ in self._ports])

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
    server: LocalServer,  # which has converted the checkpoint for them
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replicas]:
    three = Replicas(tmp_path_factory.mktemp("replicas"), environment)
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
    """How many batches the replica has computed."""
    text = requests.get(server.metrics, timeout=5).text
    found = re.search(r"^tinyvit_batch_size_images_count\{.*\} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_each_replica_has_its_share(replicas: Replicas, url: str) -> None:
    before = [batches(each) for each in replicas.servers]
    with Load(url, CLIENTS) as load:
        load.more(90)
    assert set(load.statuses) == {200}, load.statuses
    shares = [batches(each) - was for each, was in zip(replicas.servers, before, strict=True)]
    assert min(shares) > 5, shares
    assert set(load.labels) == {LABEL}


def test_a_killed_replica_costs_what_it_had_taken_in(replicas: Replicas, url: str) -> None:
    """And that is said: it is not sent to another, which it might end too."""
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
