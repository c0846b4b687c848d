"""Metrics in a real Prometheus, alerts that fire, log lines, and spans at a real receiver."""

import base64
import concurrent.futures
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import monitoring
import pytest
import requests
import yaml
from batching import QueueFull
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as messages, dataplane_pb2_grpc as services
from mlserver.metrics.registry import REGISTRY
from mlserver.settings import ModelSettings
from monitoring import Monitor
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from conftest import ROOT, Serve, settings
from local import LocalServer, free_ports, serving

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
IMAGE = (ROOT / "imgs" / "coffee.jpg").read_bytes()
SCRAPE = "1s"


def until(condition: Callable[[], Any], seconds: float = 45) -> Any:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError("the condition was not met in time")


# --- What is sent -----------------------------------------------------------------------------


def infer(server: LocalServer, images: int = 1, **more: Any) -> requests.Response:
    picture = base64.b64encode(IMAGE).decode()
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [images], "data": [picture] * images}
    body = {"inputs": [tensor], **more}
    return requests.post(f"{server.url}/v2/models/tinyvit/infer", json=body, timeout=30)


def classify(server: LocalServer, picture: bytes = IMAGE, **headers: str) -> requests.Response:
    url = f"{server.url}/v2/models/tinyvit/classify"
    return requests.post(url, data=picture, headers=headers, timeout=30)


def infer_grpc(server: LocalServer) -> None:
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="payload", datatype="BYTES", shape=[1]
    )
    tensor.contents.bytes_contents.append(IMAGE)
    request = messages.ModelInferRequest(model_name="tinyvit", inputs=[tensor])
    with grpc.insecure_channel(server.grpc) as channel:
        services.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)


@contextmanager
def load(server: LocalServer, clients: int) -> Iterator[None]:
    """So many clients, each asking again as soon as it is answered, for as long as needed."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            classify(server)

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
            for one in concurrent.futures.as_completed(asking):
                one.result()


# --- The endpoint -----------------------------------------------------------------------------


def measured(server: LocalServer) -> dict[str, float]:
    """Each tinyvit sample, summed over its labels; buckets aside."""
    text = requests.get(server.metrics, timeout=5).text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("tinyvit_") and not sample.name.endswith("_bucket"):
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return totals


def test_metrics_count_what_was_sent(either_server: LocalServer) -> None:
    before = measured(either_server)
    assert classify(either_server).ok
    assert infer(either_server, images=3).ok
    infer_grpc(either_server)
    assert classify(either_server, b"no picture").status_code == 400
    assert infer(either_server, id="twice", parameters={"top_k": 0}).status_code == 400
    after = measured(either_server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["tinyvit_batch_size_images_sum"] == 5
    assert 3 <= grown["tinyvit_batch_size_images_count"] <= 5
    assert grown["tinyvit_queue_seconds_count"] == 5
    assert grown["tinyvit_decode_seconds_count"] == 5
    assert grown["tinyvit_engine_seconds_count"] == grown["tinyvit_batch_size_images_count"]
    assert grown["tinyvit_queue_length_images_count"] == grown["tinyvit_batch_size_images_count"]
    assert grown["tinyvit_queue_length_images_sum"] >= grown["tinyvit_batch_size_images_sum"]
    assert grown["tinyvit_refused_invalid_requests_count"] == 2
    assert grown.get("tinyvit_refused_busy_requests_count", 0) == 0
    assert grown.get("tinyvit_failed_requests_count", 0) == 0
    assert 0 < grown["tinyvit_decode_seconds_sum"] < 5
    assert 0 < grown["tinyvit_engine_seconds_sum"] < 5


def test_metrics_name_the_model_and_what_they_are(server: LocalServer) -> None:
    assert classify(server).ok
    text = requests.get(server.metrics, timeout=5).text
    ours = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("tinyvit_") and not family.name.endswith("_created")
    ]
    assert ours
    for family in ours:
        assert family.name.endswith(("_seconds", "_images", "_requests"))
        assert family.documentation and "TODO" not in family.documentation
        for sample in family.samples:
            assert sample.labels["model_name"] == "tinyvit"


# --- Prometheus -------------------------------------------------------------------------------


class Prometheus:
    """A real one, with the shipped configuration on other ports and at a quicker pace."""

    def __init__(self, folder: Path, server: LocalServer) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
        (target,) = configuration["scrape_configs"][0]["static_configs"]
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
            self._process = subprocess.Popen(command, stderr=log)

    def wait(self) -> None:
        until(self._up)

    def _up(self) -> bool:
        try:
            return bool(self.query("up == 1"))
        except requests.RequestException:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = requests.get(
            f"{self.url}/api/v1/query", params={"query": expression}, timeout=5
        ).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def firing(self) -> set[str]:
        alerts = requests.get(f"{self.url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def observed(folder: Path, server: LocalServer) -> Iterator[Prometheus]:
    assert shutil.which("prometheus"), "Prometheus is needed: apt-get install prometheus"
    prometheus = Prometheus(folder, server)
    try:
        prometheus.wait()
        yield prometheus
    finally:
        prometheus.close()


def queries() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [target["expr"] for target in targets]


def filled_in(query: str) -> str:
    """With Grafana's variables as it would fill them in."""
    return query.replace("$job", "tinyvit").replace("$__rate_interval", "10s")


def test_every_query_of_the_dashboard_has_data(server: LocalServer, tmp_path: Path) -> None:
    infer_grpc(server)
    with observed(tmp_path, server) as prometheus, load(server, 4):
        for query in queries():

            def finite(query: str = query) -> bool:
                results = prometheus.query(filled_in(query))
                return bool(results) and all(each["value"][1] != "NaN" for each in results)

            until(finite)
        assert not prometheus.firing()


def test_overload_fires_its_alert(serve: Serve, tmp_path: Path) -> None:
    server = serve(env={"TINYVIT_MAX_QUEUE": "1"})
    with observed(tmp_path, server) as prometheus:
        with load(server, 6):
            until(lambda: "TinyViTQueueFull" in prometheus.firing())
        assert "TinyViTErrors" not in prometheus.firing()
        server.kill()
        until(lambda: "TinyViTDown" in prometheus.firing())


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts-test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_dashboard_is_one_that_grafana_imports() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource",
        "job",
    }
    for panel in DASHBOARD["panels"]:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"] and target["refId"]
    corners = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(corners)) == len(corners)


# --- Logs -------------------------------------------------------------------------------------


def lines(server: LocalServer) -> list[str]:
    return [line for line in server.output().splitlines() if line.strip()]


def test_one_json_line_for_each_refused_request_and_none_for_good_ones(
    environment: Mapping[str, str], tmp_path: Path, workers: int
) -> None:
    folder = settings(tmp_path, workers)
    variables = {**environment, "MLSERVER_USE_STRUCTURED_LOGGING": "true"}
    variables["MLSERVER_METRICS_DIR"] = str(tmp_path / "metrics")
    hostile = 'quote " backslash \\ and } brace'
    secret = b"not a picture, but private"
    with serving(folder, env=variables, log=tmp_path / "log", cwd=tmp_path) as server:
        started = len(lines(server))
        for _ in range(3):
            assert classify(server).ok
        assert infer(server, id="good").ok
        assert lines(server)[started:] == []
        assert infer(server, id=hostile, parameters={"top_k": 0}).status_code == 400
        assert infer(server, id="x" * 9, inputs=[]).status_code == 400
        assert classify(server, secret).status_code == 400
        until(lambda: len(lines(server)) >= started + 3, 10)
        refused = [json.loads(line) for line in lines(server)[started:]]
    assert len(refused) == 3
    assert {line["level"] for line in refused} == {"WARNING"}
    assert {line["name"] for line in refused} == {"mlserver.tinyvit"}
    assert all(line["time"] for line in refused)
    messages = [line["message"] for line in refused]
    assert messages[0] == (
        f"refused request {hostile}: 'top_k' must be a whole number from 1 to 200."
    )
    assert messages[1].startswith("refused request xxxxxxxxx: The model takes exactly one input")
    assert re.match(r"refused request [0-9a-f-]{36}: The bytes are no image", messages[2])
    written = server.output()
    for trace in (
        "private",
        base64.b64encode(secret).decode(),
        base64.b64encode(IMAGE).decode()[:64],
    ):
        assert trace not in written


@pytest.fixture(params=[0, 1], ids=["in-process", "worker"])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def test_a_full_queue_and_a_time_out_have_their_lines(serve: Serve) -> None:
    server = serve(
        env={
            "MLSERVER_USE_STRUCTURED_LOGGING": "true",
            "TINYVIT_MAX_QUEUE": "1",
            "TINYVIT_TIMEOUT": "0.0001",
        }
    )
    assert infer(server, id="late").status_code == 504
    statuses = set()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            statuses |= {
                answer.status_code for answer in pool.map(lambda _: classify(server), range(16))
            }
            if 503 in statuses:
                break
    assert 503 in statuses
    found = [json.loads(line) for line in lines(server) if "refused request" in line]
    texts = [line["message"] for line in found]
    assert any(text.startswith("refused request late: The request was not ans") for text in texts)
    assert any("The server is busy" in text for text in texts)
    counts = measured(server)
    assert counts["tinyvit_refused_timeout_requests_count"] >= 1
    assert counts["tinyvit_refused_busy_requests_count"] >= 1


def test_a_flood_has_a_line_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are counted; other refusals have their lines meanwhile."""
    now = 50.0
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now)
    monitor = Monitor(ModelSettings(name="flooded", implementation="mlserver.MLModel"))
    for seconds, identifier in ((0, "a"), (0.2, "b"), (0.7, "c"), (0.3, "d"), (2, "e")):
        now += seconds
        for error in (QueueFull(8), MLServerError("No.")):
            with pytest.raises(MLServerError), monitor.request(identifier):
                raise error
    written = [record.getMessage() for record in caplog.records]
    assert [line for line in written if line.endswith("No.")] == [
        f"refused request {identifier}: No." for identifier in "abcde"
    ]
    assert [line for line in written if not line.endswith("No.")] == [
        f"refused request a: {QueueFull(8)}",
        f"refused request d: {QueueFull(8)} (2 more since such a line)",
        f"refused request e: {QueueFull(8)}",
    ]
    labels = {"model_name": "flooded", "model_version": ""}
    for name, count in (("busy", 5), ("invalid", 5), ("timeout", 0)):
        sample = f"tinyvit_refused_{name}_requests_count"
        assert REGISTRY.get_sample_value(sample, labels) == count


# --- Traces -----------------------------------------------------------------------------------


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names and services of the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            attributes = {
                each.key: each.value.string_value for each in resource.resource.attributes
            }
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_receiver(serve: Serve) -> None:
    receiver = Receiver()
    (port,) = free_ports(1)
    with ThreadPoolExecutor(2) as pool:
        collector = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)
        collector.add_insecure_port(f"127.0.0.1:{port}")
        collector.start()
        try:
            server = serve(
                env={
                    "MLSERVER_TRACING_SERVER": f"http://127.0.0.1:{port}",
                    "MLSERVER_SERVER_NAME": "tinyvit-server",
                }
            )
            assert infer(server).ok
            assert classify(server).ok
            infer_grpc(server)
            server.stop()  # which sends what has not been sent yet
        finally:
            collector.stop(None).wait()
    names = {name for _, name in receiver.spans}
    assert {service for service, _ in receiver.spans} == {"tinyvit-server"}
    assert "POST /v2/models/{model_name}/infer" in names
    assert "POST /v2/models/tinyvit/classify" in names
    assert "/inference.GRPCInferenceService/ModelInfer" in names
    assert not any("health" in name for name in names)
