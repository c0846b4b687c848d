"""The folder runs read-only, as another user, offline; in MLServer's image; under Seldon."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests

from client.local import serving
from tests.support.exports import export
from tests.support.folders import FOLDER, copy_runtime, files
from tests.support.manifests import PODS, environment_of
from tests.support.paths import ROOT
from tests.support.programs import output_of
from tests.support.servers import Serve

pytestmark = pytest.mark.slow

NOBODY = 65534
VISIT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import requests
from client.local import serving
folder, work, image_file = map(Path, sys.argv[2:])
with serving(folder, log=work / "log", cwd="/") as server:
    url = server.url + "/v2/models/tinyvit"
    best = requests.post(url + "/classify", data=image_file.read_bytes(), timeout=30).json()[0]
    weights = requests.get(url, timeout=30).json()["parameters"]["weights"]
print(json.dumps([best["label"], weights]))
"""


def confined() -> list[str]:
    """Return a command prefix for the user nobody without network; empty if it does not work."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    # It may read all folders: Python may be in another user's home.
    drop += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "setpriv"))):
        return []
    works = subprocess.run([*alone, *drop, "true"], capture_output=True, check=False)
    return [*alone, *drop] if works.returncode == 0 else []


def test_read_only_as_nobody_without_network(public_folder: Path) -> None:
    prefix = confined()
    folder = copy_runtime(public_folder)
    for path in (*files(folder), folder / "sample", folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    image_file, client = public_folder / "image.jpg", public_folder / "client"
    shutil.copy(ROOT / "imgs" / "coffee.jpg", image_file)
    client.mkdir()
    shutil.copy(ROOT / "client" / "local.py", client)
    work = public_folder / "work"
    work.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "XDG_CACHE_HOME": str(work),
        "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
    }
    if prefix:
        os.chown(work, NOBODY, NOBODY)
    else:
        environment["HF_HUB_OFFLINE"] = "1"
    arguments = (client, folder, work, image_file)
    output = output_of(
        *prefix, sys.executable, "-c", VISIT, *arguments, env=environment, timeout=180
    )
    assert json.loads(output) == ["espresso", "sample"]
    names = {path.name for path in FOLDER.iterdir()} - {"__pycache__"}
    assert {path.name for path in folder.iterdir()} == names
    assert (work / "tinyvit-mlserver").is_dir()


def test_with_the_env_file_of_mlservers_image(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    """MLServer's image writes the settings into an .env file next to them."""
    folder = copy_runtime(tmp_path)
    settings = json.loads((folder / "settings.json").read_text())
    model = json.loads((folder / "model-settings.json").read_text())
    lines = {**settings, **model, **model["parameters"]}.items()
    text = "".join(f"{k.upper()}='{json.dumps(v)}'\n" for k, v in lines)
    # With the prefix, MLServer takes `repository_implementation` for a parameter of the model.
    text += "".join(f"MLSERVER_{k.upper()}='{v}'\n" for k, v in settings.items())
    (folder / ".env").write_text(text)
    log = tmp_path / "log"
    with serving(".", env=environment, log=log, cwd=folder) as server:
        ready = requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=10)
        assert ready.status_code == 200
        assert "repository_implementation" not in server.output()


def image_environment(image: Path) -> dict[str, str]:
    """The variables of the image, for its folder at another place."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (block,) = re.findall(r"^ENV ((?:.*\\\n)+.*)$", dockerfile, re.M)
    pairs = [pair.split("=", 1) for pair in block.replace("\\\n", " ").split()]
    return {name: value.replace("/opt/tinyvit", str(image)) for name, value in pairs}


def test_with_the_settings_that_seldon_writes(serve: Serve, tmp_path: Path) -> None:
    """Seldon's agent keeps the fields that it knows, sets a version, and loads the model by the
    repository API. The server uses the export in the model's folder, not the image's network."""
    models, image = tmp_path / "models", copy_runtime(tmp_path / "image")
    shutil.copytree(FOLDER / "sample", image / "network")
    folder = copy_runtime(models).rename(models / "tinyvit_1")
    (folder / "settings.json").unlink()
    shutil.copytree(export(FOLDER / "sample", tmp_path / "exported"), folder, dirs_exist_ok=True)
    settings = {
        "name": "tinyvit_1",
        "implementation": "serve-model.TinyViTModel",
        "parallel_workers": 0,
        "parameters": {"version": "1", "extra": {}},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    environment = {
        **image_environment(image),
        **environment_of(PODS["seldon"]),
        "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
        "MLSERVER_USE_STRUCTURED_LOGGING": "false",
        "MLSERVER_METRICS_DIR": str(tmp_path / "metrics"),
    }
    server = serve(folder=models, env=environment)
    loaded = requests.post(f"{server.url}/v2/repository/models/tinyvit_1/load", timeout=60)
    assert loaded.status_code == 200, loaded.text
    metadata = requests.get(f"{server.url}/v2/models/tinyvit_1", timeout=10).json()
    assert metadata["parameters"]["weights"] == str(folder)
    assert "digest" in metadata["parameters"], "the folder holds an export"
    image_file = (ROOT / "imgs" / "coffee.jpg").read_bytes()
    url = f"{server.url}/v2/models/tinyvit_1/classify"
    assert requests.post(url, data=image_file, timeout=30).json()[0]["label"] == "espresso"
    assert not metadata["parameters"]["fallback"]
