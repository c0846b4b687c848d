"""Start a server, send it a workload, and measure what it uses."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from benchmarks import environments, load
from benchmarks.load import BenchmarkError, Measurement
from benchmarks.networks import CACHE
from benchmarks.payloads import write_payloads
from client.local import LocalServer, ServerFailed, free_ports, start
from tests.support.clients import message

READY_TIMEOUT = 120
"""Seconds until a server must be ready."""

IDLE_SECONDS = 0.02
"""CPU time of an idle server in a tenth of a second."""


@dataclass(frozen=True)
class Workload:
    """One way to send the image; `path` is empty for gRPC."""

    name: str
    path: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    turns: float = 1
    """How many times longer than usual it is measured, because its requests take long."""

    def measure(
        self, server: LocalServer, payloads: Path, clients: int, seconds: float
    ) -> Measurement:
        """Return the result of closed-loop load; raises BenchmarkError for any status but 2xx."""
        body = payloads / self.body
        if not self.path:
            return load.grpc(server.grpc, "tinyvit", body, clients, seconds)
        return load.http(server.url + self.path, body, self.headers, clients, seconds)

    def labels(self, server: LocalServer, payloads: Path) -> list[str]:
        """Return the response's labels, best first; raises BenchmarkError for any other status."""
        body = (payloads / self.body).read_bytes()
        if not self.path:
            return _grpc_labels(server.grpc, body)
        response = requests.post(server.url + self.path, body, headers=self.headers, timeout=60)
        if not response.ok:
            raise BenchmarkError(f"{response.url}: {response.status_code} {response.text[:300]}")
        return _find_labels(response.json())


def _grpc_labels(address: str, image: bytes) -> list[str]:
    import grpc
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(address) as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(message(bytes_contents=[image]))
    return [label.decode() for label in response.outputs[0].contents.bytes_contents]


def _find_labels(content: Any) -> list[str]:
    """Find the labels in the response of any server that is compared."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [label for element in content for label in _find_labels(element)]
    for key in ("outputs", "data", "labels", "label"):
        if key in content:
            return _find_labels(content[key][:1] if key == "outputs" else content[key])
    raise BenchmarkError(f"No labels in {str(content)[:300]}")


@dataclass(frozen=True)
class Server:
    """A server to compare: a `folder` for `mlserver start`, or a `script` that takes MODEL PORT."""

    name: str
    engine: str
    workloads: tuple[Workload, ...]
    folder: Path | None = None
    script: Path | None = None
    environment: str | None = None
    """The folder below peers/ whose lock makes the server's own environment."""
    takes_exported: bool = False
    """Whether `script` takes the converted network instead of the checkpoint."""
    from_hub: bool = False
    """Whether `folder` takes the checkpoint from the hub's cache, as the lab's runtimes do."""
    variables: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/v2/models/tinyvit/ready"
    """Path that answers 200 once the server is ready; empty: an inference request must succeed."""
    exact: bool = True
    """Whether its labels must be those of this runtime in fp32."""

    def start(self, model: Path, work: Path) -> LocalServer:
        """Start the server; `work` holds its log and everything else that it writes."""
        python = Path(sys.executable)
        if self.environment:
            python = environments.folder(self.environment) / "bin" / "python"
        variables = {
            "MLSERVER_MODEL_URI": str(model),
            "MLSERVER_METRICS_DIR": str(work / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
            "TINYVIT_CACHE_DIR": str(work / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "hub"),
            "TMPDIR": str(work),
            "PYTHONPATH": str(environments.PEERS) if self.script else "",
            **self.variables,
        }
        log = work / "log"
        if self.from_hub:
            _fill_hub(work / "hub", model)
        if self.folder:
            return start(self.folder, variables, log, work, python.with_name("mlserver"))
        (port,) = free_ports(1)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(python), str(self.script), str(model), str(port)],
                env={**os.environ, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                start_new_session=True,
            )
        return LocalServer(process, port, 0, 0, log)

    def is_ready(self, process: LocalServer, payloads: Path) -> bool:
        """Return whether the server answers."""
        with contextlib.suppress(requests.RequestException, BenchmarkError):
            if self.ready:
                return requests.get(process.url + self.ready, timeout=5).ok
            return bool(self.workloads[0].labels(process, payloads))
        return False


def _fill_hub(home: Path, checkpoint: Path) -> None:
    """Put the checkpoint where the hub's client would put a downloaded TinyViT."""
    repository = home / "hub" / "models--timm--tiny_vit_5m_224.dist_in22k"
    snapshots, refs = repository / "snapshots", repository / "refs"
    snapshots.mkdir(parents=True, exist_ok=True)
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(checkpoint.name)
    if not (snapshots / checkpoint.name).exists():
        (snapshots / checkpoint.name).symlink_to(checkpoint)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yield a temporary folder with every payload; SIGTERM then ends this process in order."""
    load.check_wrk()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        write_payloads(Path(folder))
        yield Path(folder)


@contextlib.contextmanager
def running(
    server: Server, model: Path, work: Path, payloads: Path
) -> Iterator[tuple[LocalServer, float]]:
    """Yield a ready server and the seconds until it was; then end it with all its processes."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = server.start(model, work)
    try:
        while not server.is_ready(process, payloads):
            if process.process.poll() is not None or time.monotonic() > started + READY_TIMEOUT:
                raise ServerFailed(f"{server.name} is not ready\n{process.output()[-4000:]}")
            time.sleep(0.05)
        yield process, time.monotonic() - started
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.stop(timeout=10)  # Triton leaves shared memory behind when it is killed
        process.kill()


def check(server: LocalServer, workload: Workload, payloads: Path) -> list[str]:
    """Return the labels of the cat; raises BenchmarkError unless eight clients at once get them.

    Also waits for the last requests of an earlier load, which wrk does not wait for.
    """
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: workload.labels(server, payloads), range(8)))
    if not answers[0] or any(answer != answers[0] for answer in answers):
        raise BenchmarkError(f"{workload.name}: eight clients got different labels: {answers}.")
    return answers[0]


def memory(server: LocalServer) -> float:
    """Return the server's memory in MiB, shared pages counted once (PSS); 0 without /proc."""
    total = 0
    for process in _processes(server):
        with contextlib.suppress(OSError):
            total += int((process / "smaps_rollup").read_text().split("Pss:")[1].split()[0])
    return total / 1024


def cpu_seconds(server: LocalServer) -> float:
    """Return the CPU time of the server's processes, ended ones included; 0 without /proc."""
    ticks = 0
    for process in _processes(server):
        with contextlib.suppress(OSError):
            ticks += sum(int(value) for value in _stat(process)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def settle(server: LocalServer) -> None:
    """Return once the server is idle: wrk does not wait for the last responses of its load."""
    before = -1.0
    for _ in range(50):
        if (now := cpu_seconds(server)) <= before + IDLE_SECONDS:
            return
        before = now
        time.sleep(0.1)


def _processes(server: LocalServer) -> Iterator[Path]:
    """Yield the folders in /proc of the server's session and of all that its processes started.

    Image decoders have a session of their own.
    """
    stats: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stats[int(folder.name)] = _stat(folder)
    found = [pid for pid, stat in stats.items() if int(stat[3]) == server.process.pid]
    for parent in found:  # the loop extends the list
        found += [pid for pid, stat in stats.items() if int(stat[1]) == parent and pid not in found]
    yield from (Path("/proc") / str(pid) for pid in found)


def _stat(process: Path) -> list[str]:
    """Return the fields after the process' name."""
    return (process / "stat").read_text().rpartition(")")[2].split()
