"""Metrics in a real Prometheus: the dashboard's queries have data, and alerts fire."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import yaml

from client.local import LocalServer, free_ports
from tests.support.background_load import IMAGE, Load
from tests.support.clients import classify, decoders, message, repository, stub, until
from tests.support.paths import DEPLOY
from tests.support.programs import output_of
from tests.support.servers import Serve

pytestmark = pytest.mark.slow

DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
SCRAPE = "1s"
JOB = "kubernetes-pods"
"""Not the job of prometheus.yml: the alerts work with any."""


class Prometheus:
    """A real Prometheus with the shipped configuration, other ports and shorter intervals."""

    def __init__(self, folder: Path, server: LocalServer) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
        (job,) = configuration["scrape_configs"]
        job["job_name"] = JOB
        (target,) = job["static_configs"]
        target["targets"] = [f"127.0.0.1:{server.metrics_port}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        rules = (DEPLOY / "alerts.yml").read_text()
        rules = re.sub(r"for: \d+m", "for: 2s", rules).replace("[5m]", "[10s]")
        (folder / "alerts.yml").write_text(rules)
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
        command += [
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = requests.get(
            f"{self.url}/api/v1/query", params={"query": expression}, timeout=5
        ).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def firing(self) -> set[str]:
        """Return the names of the firing alerts, with the protocol of those that have one."""
        alerts = requests.get(f"{self.url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
        labels = [each["labels"] for each in alerts if each["state"] == "firing"]
        return {f"{each['alertname']} {each.get('protocol', '')}".strip() for each in labels}


@contextlib.contextmanager
def observed(folder: Path, server: LocalServer) -> Iterator[Prometheus]:
    assert shutil.which("prometheus"), "Prometheus is needed: apt-get install prometheus"
    prometheus = Prometheus(folder, server)
    try:
        until(lambda: prometheus.query("up == 1"))
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(20)


def grpc_code(server: LocalServer) -> grpc.StatusCode:
    """Return the code of a call."""
    try:
        stub(server).ModelInfer(message(bytes_contents=[IMAGE]), timeout=30)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def queries() -> list[str]:
    """Return the dashboard's queries with Grafana's variables filled in."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    filled_in = [target["expr"].replace("$job", JOB) for target in targets]
    return [query.replace("$__rate_interval", "10s") for query in filled_in]


def test_every_query_of_the_dashboard_has_data(server: LocalServer, tmp_path: Path) -> None:
    def has_data(query: str) -> bool:
        stub(server).ModelInfer(message(bytes_contents=[IMAGE]), timeout=20)
        results = prometheus.query(query)
        return bool(results) and all(each["value"][1] != "NaN" for each in results)

    with observed(tmp_path, server) as prometheus, Load(server, clients=4):
        for query in queries():
            until(lambda query=query: has_data(query), 60)
        # If other tests load the machine, answers can really take longer than 2 s.
        assert prometheus.firing() <= {"TinyViTSlow REST", "TinyViTSlow gRPC"}


def test_overload_and_a_killed_server_fire_their_alerts(serve: Serve, tmp_path: Path) -> None:
    server = serve(env={"TINYVIT_MAX_QUEUE": "1"})
    with observed(tmp_path, server) as prometheus:
        with Load(server, clients=6):
            until(lambda: "TinyViTQueueFull" in prometheus.firing())
        assert "TinyViTErrors REST" not in prometheus.firing()
        server.kill()
        until(lambda: "TinyViTDown" in prometheus.firing())


def test_an_unloaded_model_and_ended_decoders_fire_their_alerts(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve()

    def fires_after_kills() -> bool:
        for pid in decoders(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return "TinyViTDecoderRestarts" in prometheus.firing()

    def fires_after_requests() -> bool:
        assert classify(server, IMAGE).status_code == 404
        assert grpc_code(server) == grpc.StatusCode.NOT_FOUND
        return {
            "TinyViTModelMissing",
            "TinyViTNothingAnswered REST",
            "TinyViTNothingAnswered gRPC",
        } <= prometheus.firing()

    with observed(tmp_path, server) as prometheus:
        until(fires_after_kills, 60)
        assert "TinyViTModelMissing" not in prometheus.firing()
        repository(server, "unload")
        until(fires_after_requests, 60)
        repository(server, "load")
        until(lambda: "TinyViTModelMissing" not in prometheus.firing(), 60)


@pytest.mark.parametrize(
    ("timeout", "stopped", "alert"),
    [("30", 3.0, "TinyViTSlow"), ("1", 1.5, "TinyViTErrors")],
    ids=["slow", "errors"],
)
def test_a_halting_server_fires_its_alert_for_rest_and_grpc(
    serve: Serve, tmp_path: Path, timeout: str, stopped: float, alert: str
) -> None:
    """The process stops for seconds: answers are late, or time out with 504."""
    server = serve(env={"TINYVIT_TIMEOUT": timeout})

    def fires_after_halt() -> bool:
        calls = [threading.Thread(target=grpc_code, args=(server,)) for _ in range(2)]
        for call in calls:
            call.start()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(stopped)
        server.process.send_signal(signal.SIGCONT)
        for call in calls:
            call.join()
        return {f"{alert} REST", f"{alert} gRPC"} <= prometheus.firing()

    with observed(tmp_path, server) as prometheus, Load(server, clients=6):
        until(fires_after_halt, 90)
        assert "TinyViTQueueFull" not in prometheus.firing()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts-test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts(command: list[str]) -> None:
    output_of("promtool", *command, cwd=DEPLOY)


def test_every_alert_is_tested_firing_and_silent() -> None:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    cases = [
        case
        for test in yaml.safe_load((DEPLOY / "alerts-test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_grafana_can_import_the_dashboard() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({tuple(panel["gridPos"].values()) for panel in panels}) == len(panels)
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "job"}
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"] and target["refId"]
