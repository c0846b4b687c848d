"""Fixtures of all tests."""

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings as hypothesis_settings

# Without it, waiting threads of torch keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from client.local import LocalServer, start
from tests.support.exports import export
from tests.support.locks import locked
from tests.support.paths import ROOT
from tests.support.servers import Serve

pytest_plugins = [
    f"tests.support.{name}"
    for name in ("app", "browser", "exclusive", "reporting", "shared_server")
]

# A shell in the background and nohup ignore these signals, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


for profile, examples in (("quick", 25), ("thorough", 500)):
    hypothesis_settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop that runs asynchronous tests and fixtures."""
    return "asyncio"


def runs_slow_tests(config: pytest.Config) -> bool:
    return config.option.markexpr == "slow"


def pytest_configure(config: pytest.Config) -> None:
    """Generate few examples in `make test`, and many in `make test-all`."""
    hypothesis_settings.load_profile("thorough" if runs_slow_tests(config) else "quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that start servers as slow, unless a marker says why they are not.

    `make test-all` also repeats the tests with generated examples, with more of them. Tests with
    a server of their own come first: they take longest. Elsewhere than on Linux, tests of what
    only Linux has do not run.
    """
    if not hasattr(os, "memfd_create"):
        for_linux = [item for item in items if item.get_closest_marker("linux")]
        config.hook.pytest_deselected(items=for_linux)
        items[:] = [item for item in items if item not in for_linux]
    for item in items:
        starts_server = "serve" in getattr(item, "fixturenames", ())
        if starts_server and not item.get_closest_marker("own_server"):
            item.add_marker("slow")
        if runs_slow_tests(config) and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("own_server") is None)


@pytest.fixture(scope="session")
def cache_dir(run_folder: Path) -> Path:
    """The cache of converted networks: the whole run converts each network once."""
    cache = run_folder / "cache"
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
def serve(
    request: pytest.FixtureRequest, environment: Mapping[str, str], tmp_path: Path
) -> Iterator[Serve]:
    """Start servers of one test's own: `serve(env=..., folder=..., ready=True)`; other options as
    in `client.local.start`."""
    from tests.support.reporting import watch_log  # a plugin, to be imported by pytest

    with ExitStack() as stack:

        def one(
            env: Mapping[str, str] | None = None,
            folder: Path = ROOT / "tinyvit",
            ready: bool = True,
            timeout: float = 300,
            **options: Any,
        ) -> LocalServer:
            variables = {**environment, "MLSERVER_METRICS_DIR": str(tmp_path / "metrics")}
            variables |= env or {}
            log = tmp_path / f"server-{len(list(tmp_path.glob('server-*')))}.log"
            watch_log(request.node, log)
            server = start(folder, env=variables, log=log, cwd=tmp_path, **options)
            stack.callback(server.kill)
            return server.wait(timeout) if ready else server

        yield one


@pytest.fixture(scope="session")
def exported_sample(cache_dir: Path) -> Path:
    """The sample as an exported folder, made once per run; do not change it."""
    out = cache_dir.parent / "exported-sample"
    with locked(out.with_suffix(".lock"), fcntl.LOCK_EX):
        return out if out.exists() else export(ROOT / "tinyvit" / "sample", out)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for small images, with its own labels; do not change it."""
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
