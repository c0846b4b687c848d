"""One real server for all processes of a run: the first test that needs it starts it."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.local import LocalServer, start
from tests.support.locks import locked
from tests.support.paths import ROOT
from tests.support.processes import cpu_seconds, is_running

STATE = "server.json"
NOT_FOUND = "mlserver.errors.ModelNotFound"
"""MLServer itself logs a traceback for a gRPC request to an unknown model."""

STOP_TIMEOUT = 20.0
"""Seconds between SIGTERM and SIGKILL."""


class SharedProcess:
    """The part of `Popen` that works for a process that another one started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return None while the process runs."""
        return None if is_running(self.pid) else -1


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(pytestconfig, "workerinput") else base


@pytest.fixture(scope="session")
def server(environment: Mapping[str, str], run_folder: Path) -> LocalServer:
    """The server as shipped, with the bundled sample; all processes use it, so do not break it."""
    state = run_folder / STATE
    with locked(run_folder / "server.lock", fcntl.LOCK_EX):
        if not state.exists():
            log = run_folder / "server.log"
            server = start(ROOT / "tinyvit", env=environment, log=log, cwd=run_folder)
            try:
                server.wait(300)
            except BaseException:
                server.kill()
                raise
            ports = [server.http_port, server.grpc_port, server.metrics_port]
            state.write_text(json.dumps([server.process.pid, *ports]))
    pid, *ports = json.loads(state.read_text())
    return LocalServer(SharedProcess(pid), *ports, run_folder / "server.log")  # type: ignore[arg-type]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the server; fail the run if it ended early, does not stop, or logged a traceback."""
    if hasattr(session.config, "workerinput"):
        return
    folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    if not (folder / STATE).exists():
        return
    faults = stop(SharedProcess(json.loads((folder / STATE).read_text())[0]))
    log = (folder / "server.log").read_text(errors="replace")
    tracebacks = [part for part in log.split("Traceback (most")[1:] if NOT_FOUND not in part[:4000]]
    faults += [f"it logged a traceback:\nTraceback (most{part[:4000]}" for part in tracebacks[:3]]
    for fault in faults:
        print(f"\nThe shared server: {fault}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def stop(process: SharedProcess) -> list[str]:
    """Stop the server and return the faults of its stop."""
    if process.poll() is not None:
        return ["it ended before the tests did"]
    print(f"\nThe shared server used {cpu_seconds(process.pid):.0f} s of CPU time.")
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            return [f"it did not stop within {STOP_TIMEOUT:g} s"]
        time.sleep(0.05)
    return []
