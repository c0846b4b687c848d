"""An exported folder is served from an environment in which nothing but serving is installed."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from client.local import start
from tests.support.clients import COFFEE, LABEL, body, infer, tensor
from tests.support.paths import RUNTIME
from tests.support.servers import Serve

pytestmark = pytest.mark.slow

ABSENT = ("torch", "torchvision", "timm", "huggingface_hub", "safetensors")
ENVIRONMENT_MB = 700


@pytest.fixture(scope="module")
def serving_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment made from requirements-serve.lock."""
    folder = tmp_path_factory.mktemp("serving") / "venv"
    uv = [str(Path(sys.executable).with_name("uv")), "--quiet"]
    subprocess.run([*uv, "venv", "--python", sys.executable, folder], check=True)
    lock = RUNTIME / "requirements-serve.lock"
    python = folder / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "--python", python, "-r", lock], check=True)
    return folder


def test_nothing_but_serving_is_installed(serving_only: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])"
    command = [serving_only / "bin" / "python", "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_environment_is_small(serving_only: Path) -> None:
    files = [path for path in serving_only.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= ENVIRONMENT_MB * 10**6


def test_served_without_torch(
    serving_only: Path, exported_sample: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    server = start(
        RUNTIME,
        env={**environment, "MLSERVER_MODEL_URI": str(exported_sample)},
        log=tmp_path / "log",
        cwd=tmp_path,
        mlserver=serving_only / "bin" / "mlserver",
    )
    try:
        server.wait(240)
        outputs = infer(server, body(tensor(COFFEE.read_bytes()))).json()["outputs"]
        assert outputs[0]["data"][0] == LABEL
        facts = requests.get(f"{server.url}/v2/models/tinyvit", timeout=10).json()["parameters"]
        assert facts["weights"] == str(exported_sample) and facts["engine"] == "openvino"
        digest = hashlib.sha256((exported_sample / "SHA256SUMS").read_bytes()).hexdigest()
        assert facts["digest"] == f"sha256:{digest}"
    finally:
        server.kill()


def refusal(serving_only: Path, environment: dict[str, str], tmp_path: Path, **more: str) -> str:
    """The last line of a server that does not start."""
    server = start(
        RUNTIME,
        env={**environment, **more},
        log=tmp_path / "log",
        cwd=tmp_path,
        mlserver=serving_only / "bin" / "mlserver",
    )
    try:
        assert server.process.wait(240) == 1
        assert "Traceback" not in server.output()
        return server.output().splitlines()[-1]
    finally:
        server.kill()


def test_checkpoint_in_such_an_environment(
    serving_only: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    uri = str(RUNTIME / "sample")
    message = refusal(serving_only, environment, tmp_path, MLSERVER_MODEL_URI=uri)
    assert "torch and timm" in message and "requirements.txt" in message


def test_hub_in_such_an_environment(
    serving_only: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    message = refusal(serving_only, environment, tmp_path)
    assert "huggingface_hub" in message and "MLSERVER_MODEL_URI" in message


def test_changed_export_ends_the_start(serve: Serve, exported_sample: Path, tmp_path: Path) -> None:
    """In one sentence, and never by something else being served."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in exported_sample.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "model.bin").write_bytes(b"")
    server = serve(env={"MLSERVER_MODEL_URI": str(changed)}, ready=False)
    assert server.process.wait(240) == 1
    assert str(changed / "model.bin") in server.output().splitlines()[-1]
    assert "Traceback" not in server.output()
