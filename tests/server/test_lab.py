"""The lab's own runtimes serve, and fail as the README says; the finished one does not."""

import ast
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

from client.local import LocalServer
from tests.support.checkpoints import fill_cache
from tests.support.clients import CAT
from tests.support.paths import ROOT
from tests.support.programs import output_of
from tests.support.servers import Serve
from tests.support.timm_reference import TOLERANCE, TimmReference, timm_reference

IMAGE = Image.open(CAT).convert("RGB")
FIRST, TOP_5 = ROOT / "lab" / "1-first-runtime", ROOT / "lab" / "2-top-5"
TINYVIT = "tiny_vit_5m_224.dist_in22k"


def infer(server: LocalServer) -> list[dict[str, Any]]:
    """Return the outputs for the cat."""
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", np.asarray(IMAGE))])
    url = f"{server.url}/v2/models/tinyvit/infer"
    response = requests.post(url, json=request.model_dump(), timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["outputs"]


def serve_folder(serve: Serve, folder: Path, **env: str) -> LocalServer:
    return serve(folder=folder, env=env, ready=False).wait(model="tinyvit")


def python(*arguments: str, **env: str) -> str:
    """Run Python in the repository and return what it prints."""
    return output_of(sys.executable, *arguments, env={**os.environ, **env}, timeout=180)


def first_request(server: LocalServer) -> list[str]:
    """Run the first client and return the labels that it prints."""
    text = (ROOT / "client" / "first_request.py").read_text()
    assert "http://localhost:8080" in text
    output = python("-c", text.replace("http://localhost:8080", server.url))
    return re.findall(r"^ *\d+\.\d%  (.+)$", output, re.M)


# --- Against timm -----------------------------------------------------------------------------


def test_first_runtime_returns_the_samples_probabilities(serve: Serve) -> None:
    (output,) = infer(serve_folder(serve, FIRST))
    assert (output["datatype"], output["shape"]) == ("FP32", [1, 1000])
    expected = timm_reference().probabilities(IMAGE)
    np.testing.assert_allclose(output["data"], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.own_server("it is the runtime that the student writes")
def test_top_5_returns_labels_and_scores_to_the_first_client(serve: Serve) -> None:
    server = serve_folder(serve, TOP_5)
    labels, scores = infer(server)
    timm_reference().assert_matches(IMAGE, labels["data"], scores["data"])
    assert first_request(server) == labels["data"]


def test_first_client_with_the_finished_runtime(server: LocalServer) -> None:
    assert first_request(server) == timm_reference().ranking(IMAGE)[0]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TimmReference]:
    """A hub cache with a TinyViT of seeded weights, and timm's pipeline for it."""
    import timm
    import torch

    folder, cache = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    network = timm.create_model(TINYVIT, pretrained=False)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    fill_cache(cache, folder, f"timm/{TINYVIT}")
    return cache, timm_reference(folder)


def test_first_runtime_returns_tinyvits_probabilities(
    serve: Serve, hub: tuple[Path, TimmReference]
) -> None:
    cache, expected = hub
    (output,) = infer(serve_folder(serve, FIRST, HF_HOME=str(cache)))
    assert output["shape"] == [1, 21841]
    probabilities = expected.probabilities(IMAGE)
    np.testing.assert_allclose(output["data"], probabilities, rtol=0, atol=TOLERANCE)


def test_top_5_returns_tinyvits_labels(serve: Serve, hub: tuple[Path, TimmReference]) -> None:
    cache, expected = hub
    labels, scores = infer(serve_folder(serve, TOP_5, HF_HOME=str(cache)))
    expected.assert_matches(IMAGE, labels["data"], scores["data"])


# --- The experiments --------------------------------------------------------------------------


def experiment(environment: Mapping[str, str], name: str, *folder: str) -> list[str]:
    """Return the lines that an experiment prints."""
    return python("lab/experiments.py", name, *folder, **environment).splitlines()


@pytest.mark.slow
def test_floats_and_two_images_with_the_finished_runtime(environment: Mapping[str, str]) -> None:
    (line,) = experiment(environment, "floats", "tinyvit")
    assert line.startswith("400  ")
    (line,) = experiment(environment, "images", "tinyvit")
    assert line == f"200  {2 * timm_reference().ranking(IMAGE)[0]}"


def test_the_readme_shows_the_labels_of_a_black_image() -> None:
    """The lab's runtime casts floats from 0 to 1 to zeros."""
    labels = timm_reference().ranking(Image.new("RGB", IMAGE.size))[0]
    assert "200  " + str(labels)[:60] in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_a_crowd_loses_labels_in_the_lab_only(environment: Mapping[str, str]) -> None:
    def counts(*folder: str) -> list[int]:
        *lines, note = experiment(environment, "crowd", *folder)
        assert len(lines) == 8 and "varies from run to run" in note, lines
        return [len(ast.literal_eval(re.fullmatch(r"200  (\[.*\])", line)[1])) for line in lines]

    assert set(counts()) == {0, 5}, "one of the joined requests gets all labels"
    assert counts("tinyvit") == [5] * 8


# --- The files --------------------------------------------------------------------------------


def test_top_5_changes_four_lines_of_the_first_runtime() -> None:
    """The exercise is what the README says."""
    first, second = (
        {line.strip() for line in (folder / "serve-model.py").read_text().splitlines()}
        for folder in (FIRST, TOP_5)
    )
    assert first - second == {
        '"""Classify an image: input `payload`, the pixels; output, all probabilities."""',
        "from timm.data import create_transform, resolve_data_config",
        "async def predict(self, payload: np.ndarray) -> np.ndarray:",
        "return logits.softmax(dim=1).numpy()",
    }
    for name in ("model-settings.json", "settings.json"):
        assert (FIRST / name).read_text() == (TOP_5 / name).read_text()


def test_the_settings_are_those_that_the_lab_explains() -> None:
    settings = json.loads((FIRST / "model-settings.json").read_text())
    assert settings == {
        "name": "tinyvit",
        "implementation": "serve-model.TinyViTModel",
        "parameters": {"uri": "../../tinyvit/sample"},
    }
