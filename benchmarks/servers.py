"""How a server is started, asked and weighed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments
import requests
from grpc_load import request_for
from inputs import ROOT
from measurement import BenchmarkError, Measurement, grpc, http

sys.path.insert(0, str(ROOT / "client"))

from client.local import LocalServer, ServerFailed, free_ports, start

PATIENCE = 120
"""Seconds until a server must be ready."""


@dataclass(frozen=True)
class Way:
    """One way to send the cat: `path` is empty for gRPC."""

    name: str
    path: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def measure(
        self, server: LocalServer, bodies: Path, clients: int, seconds: float
    ) -> Measurement:
        """The load that so many clients make; raises BenchmarkError for any answer but 2xx."""
        body = bodies / self.body
        if not self.path:
            return grpc(server.grpc, "tinyvit", body, clients, seconds)
        return http(server.url + self.path, body, self.headers, clients, seconds)

    def labels(self, server: LocalServer, bodies: Path) -> list[str]:
        """The answer's labels, best first; raises BenchmarkError for any answer but 2xx."""
        body = (bodies / self.body).read_bytes()
        if not self.path:
            return _labels_by_grpc(server.grpc, body)
        try:
            answer = requests.post(server.url + self.path, body, headers=self.headers, timeout=60)
        except requests.RequestException as error:
            raise BenchmarkError(f"{self.name}: {error}") from None
        if not answer.ok:
            raise BenchmarkError(f"{answer.url} answered {answer.status_code}: {answer.text[:300]}")
        return _labels_in(answer.json())


def _labels_by_grpc(address: str, picture: bytes) -> list[str]:
    import grpc as library
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    with library.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request_for("tinyvit", picture))
    return [label.decode() for label in answer.outputs[0].contents.bytes_contents]


def _labels_in(answer: Any) -> list[str]:
    """Finds the labels in what any of the compared servers answers."""
    if isinstance(answer, str):
        return [answer] if not answer.startswith(("{", "[")) else _labels_in(json.loads(answer))
    if isinstance(answer, list):
        return [label for element in answer for label in _labels_in(element)]
    for key in ("outputs", "data", "labels", "label"):
        if key in answer:
            found = answer[key]
            return _labels_in(found[:1] if key == "outputs" else found)
    raise BenchmarkError(f"No labels in {str(answer)[:300]}")


@dataclass(frozen=True)
class Server:
    """One of the compared: `folder` for `mlserver start`, or else a `script` taking a model and
    port. `exact` ones must agree on the labels."""

    name: str
    engine: str
    ways: tuple[Way, ...]
    folder: Path | None = None
    script: Path | None = None
    environment: str | None = None
    """Of a peer with an environment of its own, its folder below peers/."""
    interpreter: Path | None = None
    """Python of any other environment than this one."""
    takes_exported: bool = False
    """Whether `script` takes the converted network, not the checkpoint."""
    from_hub: bool = False
    """Whether `folder` takes the checkpoint from the hub's cache, as the lab's runtimes do."""
    variables: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/v2/models/tinyvit/ready"
    """Answered with 200 once the server is ready; empty where only an answer tells."""
    exact: bool = True

    def start(self, model: Path, work: Path) -> LocalServer:
        """Starts it; `work` takes its log and what else it leaves."""
        binaries = self._python().parent
        variables = {
            "MLSERVER_MODEL_URI": str(model),
            "MLSERVER_METRICS_DIR": str(work / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
            "TINYVIT_CACHE_DIR": str(work / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "hub"),
            "TMPDIR": str(work),
            **self.variables,
        }
        log = work / "log"
        if self.from_hub:
            _fill_hub(work / "hub", model)
        if self.folder:
            return start(self.folder, variables, log, work, binaries / "mlserver")
        port = free_ports(1)[0]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(binaries / "python"), str(self.script), str(model), str(port)],
                env={**os.environ, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                start_new_session=True,
            )
        return LocalServer(process, port, 0, 0, log)

    def _python(self) -> Path:
        if self.environment:
            return environments.folder(self.environment) / "bin" / "python"
        return self.interpreter or Path(sys.executable)

    def answers(self, process: LocalServer, bodies: Path) -> bool:
        """Whether it is ready."""
        with contextlib.suppress(requests.RequestException):
            if self.ready:
                return requests.get(process.url + self.ready, timeout=5).ok
            with contextlib.suppress(BenchmarkError):
                return bool(self.ways[0].labels(process, bodies))
        return False


def _fill_hub(home: Path, checkpoint: Path) -> None:
    """Puts the checkpoint where the hub's client would, had it been fetched as TinyViT's."""
    repository = home / "hub" / "models--timm--tiny_vit_5m_224.dist_in22k"
    snapshots, refs = repository / "snapshots", repository / "refs"
    snapshots.mkdir(parents=True, exist_ok=True)
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(checkpoint.name)
    if not (snapshots / checkpoint.name).exists():
        (snapshots / checkpoint.name).symlink_to(checkpoint)


@contextlib.contextmanager
def running(
    server: Server, model: Path, work: Path, bodies: Path
) -> Iterator[tuple[LocalServer, float]]:
    """A ready server and the seconds that took; gone afterwards with all its processes."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = server.start(model, work)
    try:
        _wait(lambda: server.answers(process, bodies), process, started + PATIENCE)
        yield process, time.monotonic() - started
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.stop(timeout=10)  # Triton leaves shared memory behind when it is killed
        process.kill()


def _wait(ready: Callable[[], bool], server: LocalServer, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerFailed(
                f"exit status {server.process.returncode}\n{server.output()[-4000:]}"
            )
        if ready():
            return
        time.sleep(0.05)
    raise ServerFailed(f"not ready in time\n{server.output()[-4000:]}")


def check(server: LocalServer, way: Way, bodies: Path) -> list[str]:
    """The labels for the cat; raises BenchmarkError unless eight clients at once all get them.

    Returns when nothing of an earlier load, whose last requests wrk does not wait for, is left.
    """
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: way.labels(server, bodies), range(8)))
    if not answers[0] or any(answer != answers[0] for answer in answers):
        raise BenchmarkError(f"{way.name}: eight clients with one picture were told {answers}.")
    return answers[0]


def memory(server: LocalServer) -> float:
    """MiB that the server's processes hold: proportional set size, so that what they share counts
    once. Nothing where the system does not tell."""
    total = 0
    for process in _processes(server):
        with contextlib.suppress(OSError):
            total += _pss((process / "smaps_rollup").read_text())
    return total / 1024


def cpu_seconds(server: LocalServer) -> float:
    """Time on a core, in user and system mode, of the server's processes so far. Nothing where the
    system does not tell."""
    ticks = 0
    for process in _processes(server):
        with contextlib.suppress(OSError):
            ticks += sum(int(value) for value in _stat(process)[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes(server: LocalServer) -> Iterator[Path]:
    """Folders in /proc of the server's session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(_stat(stat.parent)[3]) == server.process.pid:
                yield stat.parent


def _stat(process: Path) -> list[str]:
    """The fields that follow a process' name."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _pss(smaps: str) -> int:
    return next(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Pss:"))


def die_tidily() -> None:
    """Makes SIGTERM and SIGHUP end this process as an error does, servers and all."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
