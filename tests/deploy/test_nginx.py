"""nginx before two replicas, one of which dies, and nginx in the pod of one server."""

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc import dataplane_pb2_grpc as services

from conftest import ROOT
from local import LocalServer, free_ports, start
from manifests import DEPLOY, PODS

IMAGE = (ROOT / "imgs" / "coffee.jpg").read_bytes()


class Replicas:
    """Two servers on fixed ports, which can die and come back, and nginx before them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._ports = [free_ports(3) for _ in range(2)]
        self.servers = [self._start(number) for number in range(2)]
        self.http_port, self.grpc_port = free_ports(2)
        self.nginx = self._start_nginx()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def _start(self, number: int) -> LocalServer:
        ports = dict(zip(("HTTP", "GRPC", "METRICS"), self._ports[number], strict=True))
        variables = {f"MLSERVER_{name}_PORT": str(port) for name, port in ports.items()}
        variables["MLSERVER_METRICS_DIR"] = str(self._folder / f"metrics-{number}")
        log = self._folder / f"server-{number}.log"
        server = start(ROOT / "tinyvit", {**self._environment, **variables}, log, self._folder)
        server.http_port, server.grpc_port, server.metrics_port = self._ports[number]
        return server

    def _start_nginx(self) -> "subprocess.Popen[bytes]":
        shipped = (DEPLOY / "nginx.conf").read_text()
        here = {"8080": self.http_port, "8081": self.grpc_port}
        for port, ours in here.items():
            shipped = shipped.replace(f"listen {port}", f"listen 127.0.0.1:{ours}")
        (self._folder / "nginx.conf").write_text(shipped)
        replicas = (DEPLOY / "replicas.conf").read_text()
        for number, base in enumerate((9080, 9180)):
            for offset in range(2):
                mine = self._ports[number][offset]
                replicas = replicas.replace(f"127.0.0.1:{base + offset}", f"127.0.0.1:{mine}")
        (self._folder / "replicas.conf").write_text(replicas)
        command = ["nginx", "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        with open(self._folder / "nginx.log", "wb") as log:
            return subprocess.Popen(command, stderr=log)

    def wait(self) -> None:
        for server in self.servers:
            server.wait()
        until(lambda: requests.get(f"{self.url}/v2/health/ready", timeout=5).ok)

    def restart(self, number: int) -> None:
        self.servers[number] = self._start(number)

    def close(self) -> None:
        self.nginx.terminate()
        for server in self.servers:
            server.kill()
        self.nginx.wait(10)


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """What the condition gives as soon as it is true; errors of the network are not yet true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if found := condition():
                return found
        time.sleep(0.1)
    raise TimeoutError("the condition was not met in time")


@pytest.fixture(scope="module")
def replicas(
    server: LocalServer,  # which has converted the checkpoint for them
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replicas]:
    if not shutil.which("nginx"):
        pytest.fail("nginx is needed: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)  # nginx writes as another user where root starts it
    folder.parent.chmod(0o755)
    both = Replicas(folder, environment)
    try:
        both.wait()
        yield both
    finally:
        both.close()


class Load:
    """Clients that ask one after the other until they are told to stop."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.statuses: Counter[int | str] = Counter()
        self.good = 0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Waits for so many further answers."""
        goal = sum(self.statuses.values()) + count
        until(lambda: sum(self.statuses.values()) >= goal)

    def _run(self) -> None:
        body = {
            "inputs": [
                {
                    "name": "payload",
                    "datatype": "BYTES",
                    "shape": [1],
                    "data": [base64.b64encode(IMAGE).decode()],
                }
            ]
        }
        with requests.Session() as session:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                try:
                    if turn % 2:
                        answer = session.post(
                            f"{self._url}/v2/models/tinyvit/classify", data=IMAGE, timeout=30
                        )
                    else:
                        answer = session.post(
                            f"{self._url}/v2/models/tinyvit/infer", json=body, timeout=30
                        )
                    status: int | str = answer.status_code
                    self.good += "espresso" in answer.text
                except requests.RequestException as error:
                    status = repr(error)
                self.statuses[status] += 1


def batches(server: LocalServer) -> float:
    """How many batches the replica has computed."""
    text = requests.get(server.metrics, timeout=5).text
    found = re.search(r"^tinyvit_batch_size_images_count\{.*\} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_no_request_fails_when_a_replica_dies_and_comes_back(replicas: Replicas) -> None:
    with Load(replicas.url) as load:
        load.more(40)
        assert all(batches(server) for server in replicas.servers)
        os.killpg(replicas.servers[0].process.pid, signal.SIGKILL)
        replicas.servers[0].process.wait()
        load.more(40)
        replicas.restart(0)
        replicas.servers[0].wait()
        until(lambda: batches(replicas.servers[0]) > 3)
    assert set(load.statuses) == {200}, load.statuses
    assert load.good == load.statuses[200]


def test_no_request_fails_when_a_replica_is_stopped(replicas: Replicas) -> None:
    with Load(replicas.url) as load:
        load.more(20)
        assert replicas.servers[1].stop() == 0
        load.more(20)
    replicas.restart(1)
    replicas.servers[1].wait()
    assert set(load.statuses) == {200}, load.statuses


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/tinyvit/unload",
        "/v2/repository/models/tinyvit/load",
        "/v2/%72epository/models/tinyvit/unload",
        "//v2//repository/models/tinyvit/unload",
        "/v2/models/../repository/models/tinyvit/unload",
        "/v2/models/%2e%2e%2frepository/models/tinyvit/unload",
    ],
)
def test_repository_api_is_closed(replicas: Replicas, path: str) -> None:
    request = requests.Request("POST", replicas.url, json={}).prepare()
    request.url = replicas.url + path
    with requests.Session() as session:
        answer = session.send(request, timeout=10)
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": "The repository API is closed here."}
    for server in replicas.servers:
        assert requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=5).status_code == 200


def test_metrics_are_not_passed_on(replicas: Replicas) -> None:
    assert requests.get(f"{replicas.url}/metrics", timeout=5).status_code == 404


def test_bodies_over_the_limit_are_refused_unread(replicas: Replicas) -> None:
    headers = {"Content-Length": str(65 * 2**20)}
    answer = requests.post(
        f"{replicas.url}/v2/models/tinyvit/classify", data=b"", headers=headers, timeout=10
    )
    assert answer.status_code == 413
    assert "at most 67108864 bytes" in answer.json()["error"]


def test_grpc_is_passed_on_and_its_repository_api_is_closed(replicas: Replicas) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{replicas.grpc_port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(infer_request(), timeout=20)
        assert answer.outputs[0].contents.bytes_contents[0] == b"espresso"
        for call, message in (
            (stub.RepositoryIndex, messages.RepositoryIndexRequest()),
            (stub.RepositoryModelLoad, messages.RepositoryModelLoadRequest(model_name="tinyvit")),
            (
                stub.RepositoryModelUnload,
                messages.RepositoryModelUnloadRequest(model_name="tinyvit"),
            ),
        ):
            with pytest.raises(grpc.RpcError) as refusal:
                call(message, timeout=10)
            assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert "closed here" in refusal.value.details()
        assert stub.ModelReady(messages.ModelReadyRequest(name="tinyvit"), timeout=10).ready


def infer_request() -> Any:
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="payload", datatype="BYTES", shape=[1]
    )
    tensor.contents.bytes_contents.append(IMAGE)
    return messages.ModelInferRequest(model_name="tinyvit", inputs=[tensor])


def test_one_clear_error_when_no_replica_is_left(replicas: Replicas) -> None:
    """The module's last test: it leaves nothing running."""
    for server in replicas.servers:
        server.kill()
    answer = requests.post(f"{replicas.url}/v2/models/tinyvit/classify", data=IMAGE, timeout=10)
    assert answer.status_code == 503
    assert answer.json() == {"error": "No server answers. Try again in a moment."}
    with grpc.insecure_channel(f"127.0.0.1:{replicas.grpc_port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.ModelInfer(infer_request(), timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_nginx_of_the_pod_serves_metrics_apart_and_drains(
    server: LocalServer, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    here = free_ports(3)
    theirs = (server.http_port, server.grpc_port, server.metrics_port)
    for path in (DEPLOY / "nginx.conf", DEPLOY / "kubernetes" / "replicas.conf"):
        text = path.read_text()
        for offset in range(3):
            text = text.replace(f"listen {8080 + offset}", f"listen 127.0.0.1:{here[offset]}")
            text = text.replace(f"127.0.0.1:{9080 + offset};", f"127.0.0.1:{theirs[offset]};")
        (tmp_path / path.name).write_text(text)
    container = PODS["kubernetes"]["containers"][1]
    drain = container["lifecycle"]["preStop"]["exec"]["command"]
    start_up, drain = (
        [re.sub(r"/etc/tinyvit|/tmp", str(tmp_path), word) for word in words]
        for words in (container["command"], drain)
    )
    drain[-1] = drain[-1].replace("sleep 5;", "")
    with open(tmp_path / "log", "wb") as log:
        nginx = subprocess.Popen(start_up, stderr=log)
    rest, metrics = (f"http://127.0.0.1:{here[port]}" for port in (0, 2))
    try:
        until(lambda: requests.get(f"{rest}/v2/health/ready", timeout=5).ok)
        assert requests.get(f"{rest}/v2/health/live", timeout=5).ok
        assert requests.get(f"{rest}/metrics", timeout=5).status_code == 404
        assert "tinyvit_decode_seconds" in requests.get(f"{metrics}/metrics", timeout=5).text
        assert requests.get(f"{metrics}/v2/health/ready", timeout=5).status_code == 404
        subprocess.run(drain, check=True, timeout=20, stderr=subprocess.DEVNULL)
        assert nginx.wait(5) == 0
    finally:
        nginx.kill()
        nginx.wait()
