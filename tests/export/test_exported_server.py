"""An exported folder is served from an environment in which nothing but serving is installed."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import requests

from client.local import LocalServer
from tests.support.clients import COFFEE, LABEL, body, infer, tensor
from tests.support.paths import RUNTIME
from tests.support.programs import UV, output_of
from tests.support.servers import Serve

pytestmark = pytest.mark.slow

ABSENT = ("torch", "torchvision", "timm", "huggingface_hub", "safetensors")
ENVIRONMENT_MB = 700


@pytest.fixture(scope="module")
def serving_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment made from requirements-serve.lock."""
    folder = tmp_path_factory.mktemp("serving") / "venv"
    lock = RUNTIME / "requirements-serve.lock"
    output_of(UV, "venv", "--python", sys.executable, folder)
    output_of(UV, "pip", "install", "--python", folder / "bin" / "python", "-r", lock, timeout=None)
    return folder


def test_nothing_but_serving_is_installed(serving_only: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])"
    assert output_of(serving_only / "bin" / "python", "-c", code).strip() == "[]"


def test_environment_is_small(serving_only: Path) -> None:
    files = [path for path in serving_only.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= ENVIRONMENT_MB * 10**6


def test_served_without_torch(serving_only: Path, exported_sample: Path, serve: Serve) -> None:
    variables = {"MLSERVER_MODEL_URI": str(exported_sample)}
    server = serve(env=variables, mlserver=serving_only / "bin" / "mlserver")
    outputs = infer(server, body(tensor(COFFEE.read_bytes()))).json()["outputs"]
    assert outputs[0]["data"][0] == LABEL
    facts = requests.get(f"{server.url}/v2/models/tinyvit", timeout=10).json()["parameters"]
    assert facts["weights"] == str(exported_sample) and facts["engine"] == "openvino"
    digest = hashlib.sha256((exported_sample / "SHA256SUMS").read_bytes()).hexdigest()
    assert facts["digest"] == f"sha256:{digest}"


def assert_ends(server: LocalServer, *parts: str) -> None:
    """Assert that a server does not start, and that these are parts of the one sentence why."""
    assert server.process.wait(240) == 1
    assert "Traceback" not in server.output()
    assert all(part in server.output().splitlines()[-1] for part in parts), server.output()


def test_checkpoint_in_such_an_environment(serving_only: Path, serve: Serve) -> None:
    variables = {"MLSERVER_MODEL_URI": str(RUNTIME / "sample")}
    server = serve(env=variables, ready=False, mlserver=serving_only / "bin" / "mlserver")
    assert_ends(server, "torch and timm", "requirements.txt")


def test_hub_in_such_an_environment(serving_only: Path, serve: Serve) -> None:
    server = serve(ready=False, mlserver=serving_only / "bin" / "mlserver")
    assert_ends(server, "huggingface_hub", "MLSERVER_MODEL_URI")


def test_changed_export_ends_the_start(serve: Serve, exported_sample: Path, tmp_path: Path) -> None:
    """In one sentence, and never by something else being served."""
    changed = shutil.copytree(exported_sample, tmp_path / "changed")
    (changed / "model.bin").write_bytes(b"")
    server = serve(env={"MLSERVER_MODEL_URI": str(changed)}, ready=False)
    assert_ends(server, str(changed / "model.bin"))
