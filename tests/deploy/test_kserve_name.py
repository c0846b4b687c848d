"""In the image, variables name the model and the place of its network."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import requests

from tests.support.folders import copy_runtime
from tests.support.manifests import PODS, environment_of
from tests.support.paths import DEPLOY
from tests.support.servers import Serve
from tests.support.traffic import IMAGE, LABEL

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`tinyvit/` after the Dockerfile's edit, which removes the name."""
    copy = copy_runtime(tmp_path)
    settings = copy / "model-settings.json"
    (expression,) = re.findall(r"sed '(.*)' model-settings", (DEPLOY / "Dockerfile").read_text())
    subprocess.run(["sed", "-i", expression, settings], check=True)
    assert "name" not in json.loads(settings.read_text())
    return copy


def test_kserves_variables_name_the_model_and_find_its_network(
    serve: Serve, folder: Path, exported_sample: Path
) -> None:
    """KServe fills them in for an InferenceService called `birds`, and downloads its `storageUri`
    into the folder of the network."""
    theirs = environment_of(PODS["kserve"])
    variables = {name: theirs[name] for name in ("MLSERVER_MODEL_NAME", "MLSERVER_MODEL_URI")}
    filled = {
        name: value.replace("{{.Name}}", "birds").replace("/mnt/models", str(exported_sample))
        for name, value in variables.items()
    }
    server = serve(folder=folder, env=filled)
    answer = requests.post(f"{server.url}/v2/models/birds/classify", data=IMAGE, timeout=30)
    assert answer.json()[0]["label"] == LABEL
    missing = requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=5)
    assert missing.status_code == 404
