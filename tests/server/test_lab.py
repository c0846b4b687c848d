"""The lab's own runtimes serve, and fail as the README says; the finished one does not."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

from tests.support.checkpoints import fill_cache
from tests.support.timm_reference import TOLERANCE, Truth, truth

ROOT = Path(__file__).resolve().parents[2]
CAT = Image.open(ROOT / "imgs" / "cat.jpg").convert("RGB")
FIRST, TOP_5 = "lab/1-first-runtime", "lab/2-top-5"
TINYVIT = "tiny_vit_5m_224.dist_in22k"


def ask(server) -> list[dict]:
    """The outputs for the cat."""
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", np.asarray(CAT))])
    url = f"{server.url}/v2/models/tinyvit/infer"
    answer = requests.post(url, json=request.model_dump(), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]


def serve_folder(serve, name: str, **env: str):
    return serve(folder=ROOT / name, env=env, ready=False).wait(model="tinyvit")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> tuple[Path, Truth]:
    """The hub's cache as it is once TinyViT was fetched, with seeded weights, and what they say."""
    import timm
    import torch

    folder, cache = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    network = timm.create_model(TINYVIT, pretrained=False)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    fill_cache(cache, folder, f"timm/{TINYVIT}")
    return cache, truth(folder)


def test_first_runtime_answers_the_samples_probabilities(serve) -> None:
    (output,) = ask(serve_folder(serve, FIRST))
    assert (output["datatype"], output["shape"]) == ("FP32", [1, 1000])
    expected = truth().probabilities(CAT)
    np.testing.assert_allclose(output["data"], expected, rtol=0, atol=TOLERANCE)


def test_first_runtime_answers_tinyvits_where_the_hub_has_them(serve, hub) -> None:
    cache, expected = hub
    (output,) = ask(serve_folder(serve, FIRST, HF_HOME=str(cache)))
    assert output["shape"] == [1, 21841]
    probabilities = expected.probabilities(CAT)
    np.testing.assert_allclose(output["data"], probabilities, rtol=0, atol=TOLERANCE)


def test_top_5_answers_tinyvits_labels_where_the_hub_has_them(serve, hub) -> None:
    cache, expected = hub
    labels, scores = ask(serve_folder(serve, TOP_5, HF_HOME=str(cache)))
    expected.assert_tells(CAT, labels["data"], scores["data"])


def test_top_5_answers_labels_and_scores_to_the_first_client(serve) -> None:
    server = serve_folder(serve, TOP_5)
    labels, scores = ask(server)
    truth().assert_tells(CAT, labels["data"], scores["data"])
    done = first_request(server)
    assert done.returncode == 0, done.stderr
    assert named(done) == labels["data"]


def test_first_client_asks_the_finished_runtime(server) -> None:
    done = first_request(server)
    assert done.returncode == 0, done.stderr
    assert named(done) == truth().ranking(CAT)[0]


def first_request(server) -> "subprocess.CompletedProcess[str]":
    text = (ROOT / "client" / "first_request.py").read_text()
    assert "http://localhost:8080" in text
    return subprocess.run(
        [sys.executable, "-c", text.replace("http://localhost:8080", server.url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def named(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return re.findall(r"^ *\d+\.\d%  (.+)$", done.stdout, re.M)


def test_they_are_short() -> None:
    assert len((ROOT / "client" / "first_request.py").read_text().splitlines()) <= 25
    assert len((ROOT / "tinyvit" / "serve-model.py").read_text().splitlines()) <= 60
    module = ast.parse((ROOT / FIRST / "serve-model.py").read_text())
    (runtime,) = (node for node in module.body if isinstance(node, ast.ClassDef))
    assert runtime.end_lineno - runtime.lineno < 20


def test_top_5_is_the_first_runtime_and_labels() -> None:
    """Nothing else differs, so that the exercise is what it says."""
    first, second = (
        (ROOT / folder / "serve-model.py").read_text().splitlines() for folder in (FIRST, TOP_5)
    )
    added = [line.strip() for line in second if line not in first]
    assert len(added) == 7, added
    for name in ("model-settings.json", "settings.json"):
        assert (ROOT / FIRST / name).read_text() == (ROOT / TOP_5 / name).read_text()


def experiment(environment, name: str, *folder: str) -> list[str]:
    """What it prints, a line each."""
    done = subprocess.run(
        [sys.executable, "lab/experiments.py", name, *folder],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_what_the_real_one_says_of_floats_and_of_two_pictures(environment) -> None:
    """What the lab's own answers, the README's test compares with what the README says."""
    (line,) = experiment(environment, "floats", "tinyvit")
    assert line.startswith("400  ")
    (line,) = experiment(environment, "pictures", "tinyvit")
    assert line == f"200  {2 * truth().ranking(CAT)[0]}"


def test_floats_become_a_black_picture() -> None:
    """As the README says of the lab's own answer, which begins with these labels."""
    labels = truth().ranking(Image.new("RGB", CAT.size))[0]
    readme = (ROOT / "README.md").read_text()
    assert "200  " + str(labels)[:60] in readme


def test_a_crowd_loses_labels_there_and_none_here(environment) -> None:
    def counts(*folder: str) -> list[int]:
        *lines, note = experiment(environment, "crowd", *folder)
        assert len(lines) == 8 and "varies from run to run" in note
        return [len(ast.literal_eval(re.fullmatch(r"200  (\[.*\])", line)[1])) for line in lines]

    there = counts()
    assert set(there) == {0, 5}, "the joined requests' first has all labels, the others none"
    assert counts("tinyvit") == [5] * 8


def test_settings_are_only_what_the_lab_explains() -> None:
    settings = json.loads((ROOT / FIRST / "model-settings.json").read_text())
    assert settings == {
        "name": "tinyvit",
        "implementation": "serve-model.TinyViTModel",
        "parameters": {"uri": "../../tinyvit/sample"},
    }
