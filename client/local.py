"""Run `mlserver start FOLDER` on free loopback ports for as long as it is needed."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

MLSERVER = Path(sys.executable).with_name("mlserver")

_PORTS = range(20000 + os.getpid() % 16, 32768, 16)
"""Below the ephemeral ports of Linux; processes that start together use different ones."""
_NEXT_PORT = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


class ServerFailed(RuntimeError):
    """The server ended or was not ready in time; the message has the end of its log."""


@dataclass
class LocalServer:
    """A server process and its ports."""

    process: "subprocess.Popen[bytes]"
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def output(self) -> str:
        """Return the log so far; empty if the server prints to the terminal."""
        return self.log.read_text(errors="replace") if self.log else ""

    def wait(self, timeout: float = 120, model: str | None = None) -> "LocalServer":
        """Return when the server, or one model, is ready; raises ServerFailed."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        deadline = time.monotonic() + timeout
        session = requests.Session()
        session.trust_env = False  # no proxy for this machine
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if session.get(self.url + path, timeout=5).ok:
                    return self
            time.sleep(0.05)
        status = self.process.returncode
        reason = f"not ready within {timeout} s" if status is None else f"exit status {status}"
        raise ServerFailed(f"{reason}\n{self.output()[-4000:]}")

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 20) -> int:
        """Send a signal and return the exit status; kill the server after the timeout."""
        self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    folder: str | Path,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: str | Path | None = None,
    mlserver: str | Path = MLSERVER,
) -> LocalServer:
    """Start a server in its own process group, with its output in `log`."""
    http, grpc, metrics = free_ports(3)
    ports = {"HTTP": http, "GRPC": grpc, "METRICS": metrics}
    variables = {f"MLSERVER_{name}_PORT": str(port) for name, port in ports.items()}
    with open(log, "ab") if log else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            [str(mlserver), "start", str(folder)],
            env={**os.environ, "MLSERVER_HOST": "127.0.0.1", **variables, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            cwd=cwd,
            start_new_session=True,
        )
    return LocalServer(process, http, grpc, metrics, log)


@contextlib.contextmanager
def serving(folder: str | Path, timeout: float = 120, **options: Any) -> Iterator[LocalServer]:
    """Start a server, yield it when it is ready, and end it in any case."""
    with contextlib.ExitStack() as stack:
        with defer_signals():  # else one could come before the server is registered
            server = start(folder, **options)
            stack.callback(server.kill)
        yield server.wait(timeout)
        server.stop()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM only at the end of the block."""
    pending: list[int] = []
    stops = signal.SIGINT, signal.SIGTERM
    handlers = [signal.signal(stop, lambda number, _: pending.append(number)) for stop in stops]
    try:
        yield
    finally:
        for stop, handler in zip(stops, handlers, strict=True):
            signal.signal(stop, handler)
    for number in pending:
        signal.raise_signal(number)


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free now and that no other process is about to take."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port := next(_NEXT_PORT)))
            ports.append(port)
    return ports
