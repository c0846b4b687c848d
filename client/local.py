"""A server of one's own: `mlserver start FOLDER` on free loopback ports, for as long as needed."""

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
from typing import IO

import requests

MLSERVER = Path(sys.executable).with_name("mlserver")

_SHARE = range(20000 + os.getpid() % 16, 32768, 16)
"""Of the ports below those that Linux gives to connections; the next processes have other ones."""
_PORTS = itertools.cycle(random.sample(_SHARE, len(_SHARE)))


class ServerFailed(RuntimeError):
    """The server ended, or was not ready in time; the message has the end of its log."""


@dataclass
class LocalServer:
    """A running server process and where it listens."""

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
        """What the server has printed so far; empty where it prints to the terminal."""
        return self.log.read_text(errors="replace") if self.log else ""

    def wait(self, timeout: float = 120, model: str | None = None) -> "LocalServer":
        """Returns when the server (or one model) is ready; raises ServerFailed."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(
                    f"exit status {self.process.returncode}\n{self.output()[-4000:]}"
                )
            with contextlib.suppress(requests.RequestException):
                if requests.get(self.url + path, timeout=5).ok:
                    return self
            time.sleep(0.05)
        raise ServerFailed(f"not ready after {timeout} s\n{self.output()[-4000:]}")

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 20) -> int:
        """Sends a signal, and returns the exit status; kills what outlives the time-out."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process and all it has started, at once."""
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
    """Starts a server in a process group of its own; `log` takes its output."""
    http, grpc, metrics = free_ports(3)
    variables = {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": str(http),
        "MLSERVER_GRPC_PORT": str(grpc),
        "MLSERVER_METRICS_PORT": str(metrics),
    }
    with contextlib.ExitStack() as stack:
        output: IO[bytes] | None = stack.enter_context(open(log, "ab")) if log else None
        process = subprocess.Popen(
            [str(mlserver), "start", str(folder)],
            env={**os.environ, **variables, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            cwd=cwd,
            start_new_session=True,
        )
    return LocalServer(process, http, grpc, metrics, log)


@contextlib.contextmanager
def serving(folder: str | Path, timeout: float = 120, **options: object) -> Iterator[LocalServer]:
    """A ready server that is gone afterwards, whatever happens."""
    server = start(folder, **options)  # type: ignore[arg-type]
    try:
        yield server.wait(timeout)
        server.stop()
    finally:
        server.kill()


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Puts Ctrl-C and SIGTERM off until the end of the block, so that nothing is done by half."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for came_number in came:
        signal.raise_signal(came_number)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now, and that nobody is given before a server takes
    them, a second or two later."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port := next(_PORTS)))
            found.append(port)
    return found
