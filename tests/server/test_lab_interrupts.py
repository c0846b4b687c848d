"""Ctrl-C and SIGTERM end the lab's servers and experiments, whatever they are doing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from client.local import LocalServer, start
from tests.support.clients import children, until
from tests.support.paths import ROOT
from tests.support.processes import children_of
from tests.support.programs import run_program

FOLDERS = ["lab/1-first-runtime", "lab/2-top-5"]
MOMENTS = range(20)
LOADED = "Loaded model"


def started(folder: str, environment: Mapping[str, str], log: Path) -> LocalServer:
    """Run `mlserver start FOLDER` as the README does: in the repository, which has a `.env`."""
    return start(folder, environment, log, cwd=ROOT)


def assert_ends(server: LocalServer, seconds: float = 10) -> None:
    """Assert that the server and its children end in time and release the terminal."""
    try:
        server.process.wait(seconds)
        assert children(server) == []
    finally:
        server.kill()


@pytest.fixture(scope="module")
def loading_seconds(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Seconds from the command to the loaded model of the first runtime, on this machine."""
    begin = time.monotonic()
    server = started(FOLDERS[0], environment, tmp_path_factory.mktemp("first") / "log")
    try:
        server.wait(model="tinyvit")
        return time.monotonic() - begin
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_a_server_at_any_moment(
    moment: int,
    loading_seconds: float,
    environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """Twenty moments from the command to after the model is loaded; the folders take turns."""
    server = started(FOLDERS[moment % 2], environment, tmp_path / "log")
    time.sleep(1.2 * loading_seconds * moment / MOMENTS[-1])
    os.killpg(server.process.pid, signal.SIGINT)  # a terminal sends it to the group
    assert_ends(server)


@pytest.mark.parametrize(
    ("folder", "number"),
    [
        (FOLDERS[1], signal.SIGINT),
        pytest.param(FOLDERS[0], signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_server_that_imports_torch(
    folder: str, number: signal.Signals, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """With a worker, which is MLServer's default, the server would never end."""
    server = started(folder, environment, tmp_path / "log")
    until(lambda: "libtorch" in memory_map(server.process.pid), within=60)
    os.killpg(server.process.pid, number)
    assert_ends(server)
    assert LOADED not in server.output()


def memory_map(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
def test_variable_sets_the_workers(environment: Mapping[str, str], tmp_path: Path) -> None:
    variables = {**environment, "MLSERVER_PARALLEL_WORKERS": "2"}
    server = started(FOLDERS[1], variables, tmp_path / "log")
    try:
        server.wait(model="tinyvit")
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server)]
        assert sum(b"spawn_main" in command for command in commands) == 2
    finally:
        server.kill()


@pytest.mark.slow
def test_second_server_on_a_taken_port_says_so_and_ends(
    server: LocalServer, environment: Mapping[str, str], tmp_path: Path
) -> None:
    variables = {**environment, "MLSERVER_HTTP_PORT": str(server.http_port)}
    second = started(FOLDERS[1], variables, tmp_path / "log")
    assert_ends(second, 60)
    assert second.process.returncode == 3
    assert "address already in use" in second.output()
    assert LOADED not in second.output()


def importing(pid: int, _: str) -> bool:
    return "numpy" in memory_map(pid)


def starting(pid: int, _: str) -> bool:
    return bool(children_of(pid))


def running(_: int, log: str) -> bool:
    return LOADED in log


@pytest.mark.slow
@pytest.mark.parametrize("phase", [importing, starting, running])
def test_ctrl_c_ends_an_experiment(
    phase: Callable[[int, str], bool], environment: Mapping[str, str], tmp_path: Path
) -> None:
    """This one measures for five seconds once its server runs."""
    experiment = subprocess.Popen(
        [sys.executable, "lab/experiments.py", "probe"],
        cwd=ROOT,
        env={**os.environ, **environment, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def log() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("*/log"))

    until(lambda: phase(experiment.pid, log()), within=60)
    servers = children_of(experiment.pid)
    experiment.send_signal(signal.SIGINT)
    output, _ = experiment.communicate(timeout=60)
    assert (experiment.returncode, output) == (130, "")
    assert not any(Path(f"/proc/{server}").exists() for server in servers)
    assert list(tmp_path.glob("*/log")) == []


def test_experiments_refuse_a_folder_without_model_settings() -> None:
    done = run_program(sys.executable, "lab/experiments.py", "floats", "imgs", timeout=60)
    assert done.status == 1
    assert done.errors.endswith("imgs is not a model folder: it contains no model-settings.json.\n")
