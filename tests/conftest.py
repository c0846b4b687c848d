"""Real servers for the tests, shared where a test does not break them."""

import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

# Else torch's threads keep a core busy while they wait for each other, and other tests wait too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from client.local import LocalServer, serving, start
from tests.support.clients import assert_sane
from tests.support.exports import export
from tests.support.locks import locked
from tests.support.paths import ROOT
from tests.support.servers import Serve, settings

pytest_plugins = [
    f"tests.support.{name}" for name in ("app", "browser", "exclusive", "shared_server")
]

# In a shell's background, and under nohup, these are ignored, and would be in what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONGEST = ("test_readme", "test_lab", "test_export", "test_decode_bombs", "test_exported")
"""Files of one to three minutes each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, else one process is at them when the others have nothing left."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted networks of the whole run: each is converted once, whichever process needs it."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def environment(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of every test server: the sample, no hub, nothing kept outside the run."""
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "TINYVIT_CACHE_DIR": str(cache_dir),
        "MLSERVER_METRICS_DIR": str(tmp_path_factory.mktemp("metrics")),
        "MLSERVER_ENVIRONMENTS_DIR": str(tmp_path_factory.mktemp("environments")),
    }


@pytest.fixture
def serve(environment: Mapping[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of one test's own: `serve(env=..., folder=..., ready=True)`."""
    with ExitStack() as stack:

        def one(
            env: Mapping[str, str] | None = None,
            folder: Path = ROOT / "tinyvit",
            ready: bool = True,
            timeout: float = 120,
        ) -> LocalServer:
            variables = {**environment, "MLSERVER_METRICS_DIR": str(tmp_path / "metrics")}
            variables |= env or {}
            log = tmp_path / f"server-{len(list(tmp_path.glob('server-*')))}.log"
            server = start(folder, env=variables, log=log, cwd=tmp_path)
            stack.callback(server.kill)
            return server.wait(timeout) if ready else server

        yield one


@pytest.fixture
def serve_workers(serve: Serve, tmp_path: Path) -> Callable[..., LocalServer]:
    """As `serve`, with so many workers."""

    def one(workers: int, **options: Any) -> LocalServer:
        folder = tmp_path / f"workers-{workers}"
        if not folder.exists():
            folder.mkdir()
            settings(folder, workers)
        return serve(folder=folder / "tinyvit", **options)

    return one


@contextmanager
def _shared(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory, workers: int
) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp(f"workers-{workers}")
    variables = {
        **environment,
        "MLSERVER_PARALLEL_WORKERS": str(workers),
        "MLSERVER_METRICS_DIR": str(folder / "metrics"),
    }
    with serving(
        settings(folder, workers), env=variables, log=folder / "log", cwd=folder
    ) as server:
        yield server


@pytest.fixture(scope="session")
def server(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """The server as shipped, with the fallback checkpoint; not to be broken."""
    with _shared(environment, tmp_path_factory, workers=0) as one:
        yield one


@pytest.fixture(scope="session")
def worker_server(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """The same with one worker process; not to be broken."""
    with _shared(environment, tmp_path_factory, workers=1) as one:
        yield one


@pytest.fixture(params=["in-process", "worker"])
def either_server(request: pytest.FixtureRequest) -> LocalServer:
    """Each of both, one after the other."""
    return request.getfixturevalue("server" if request.param == "in-process" else "worker_server")


@pytest.fixture
def sane_server(either_server: LocalServer) -> Iterator[LocalServer]:
    """Each server in turn, which has to be as good as new afterwards."""
    before = either_server.output().count("Traceback")
    yield either_server
    assert either_server.process.poll() is None
    assert_sane(either_server)
    log = either_server.output()
    assert log.count("Traceback") == before, log[-3000:]


@pytest.fixture(scope="session")
def exported_sample(cache_dir: Path) -> Path:
    """The sample as an exported folder, made once for the whole run; not to be changed."""
    out = cache_dir.parent / "exported-sample"
    with locked(out.with_suffix(".lock"), fcntl.LOCK_EX):
        return out if out.exists() else export(ROOT / "tinyvit" / "sample", out)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network on small images, with names of its own; not to be changed."""
    from tests.support.checkpoints import NAMES
    from tests.support.timm_reference import make_checkpoint

    return make_checkpoint(
        tmp_path_factory.mktemp("small") / "small",
        preprocessing={"input_size": (3, 64, 64), "crop_pct": 1.0},
        label_names=NAMES,
    )


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
