"""In the image, variables name the model and the place of its network."""

import json
import re
import shutil
from pathlib import Path

import pytest
import requests

from tests.support.manifests import DEPLOY, PODS, environment_of
from tests.support.paths import ROOT
from tests.support.servers import Serve
from tests.support.traffic import IMAGE, LABEL

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`tinyvit/` after the Dockerfile's edit."""
    copy = tmp_path / "image" / "tinyvit"
    shutil.copytree(ROOT / "tinyvit", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (expression,) = re.findall(r"sed '(.*)' model-settings", (DEPLOY / "Dockerfile").read_text())
    (removed,) = re.findall("/(.*)/d", expression)
    settings = (copy / "model-settings.json").read_text().splitlines()
    kept = [line for line in settings if removed not in line]
    assert len(kept) == len(settings) - 1
    (copy / "model-settings.json").write_text("\n".join(kept))
    assert "name" not in json.loads((copy / "model-settings.json").read_text())
    return copy


def test_kserves_variables_name_the_model_and_find_its_network(
    serve: Serve, folder: Path, exported_sample: Path
) -> None:
    """KServe fills them in for an InferenceService called `cats`."""
    theirs = environment_of(PODS["kserve"])
    variables = {name: theirs[name] for name in ("MLSERVER_MODEL_NAME", "MLSERVER_MODEL_URI")}
    filled = {
        name: value.replace("{{.Name}}", "cats").replace("/mnt/models", str(exported_sample))
        for name, value in variables.items()
    }
    server = serve(folder=folder, env=filled)
    answer = requests.post(f"{server.url}/v2/models/cats/classify", data=IMAGE, timeout=30)
    assert answer.json()[0]["label"] == LABEL
    missing = requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=5)
    assert missing.status_code == 404


def test_the_default_name_is_the_folders(serve: Serve, folder: Path, exported_sample: Path) -> None:
    server = serve(folder=folder, env={"MLSERVER_MODEL_URI": str(exported_sample)})
    assert requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=5).ok
