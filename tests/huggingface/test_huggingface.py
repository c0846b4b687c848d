"""MLServer's Hugging Face runtime, timm's own pipeline and TinyViTModel agree on one checkpoint.

These tests run in .venv-huggingface; those of TinyViTModel start the server of .venv.
"""

import base64
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests
import timm
import torch
from PIL import Image
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_data_config,
)
from transformers import TimmWrapperForImageClassification

from client.local import LocalServer
from huggingface.demo import INFER, rankings_in, request_for
from huggingface.export import export
from tests.support.http import http_server, reply
from tests.support.huggingface import (
    MAIN,
    OWN_ENVIRONMENT,
    PATIENCE,
    Serve,
    copy_repository,
    start_server,
)
from tests.support.paths import ROOT

SAMPLE = ROOT / "tinyvit" / "sample"
LABELS = {"cat.jpg": "tabby, tabby cat", "coffee.jpg": "espresso"}
IMAGES = {name: (ROOT / "imgs" / name).read_bytes() for name in LABELS}
BOTH = ("tinyvit", "huggingface")
DEMO = [sys.executable, str(ROOT / "huggingface" / "demo.py")]

Ranking = list[dict[str, Any]]


def timm_ranking(image: bytes, checkpoint: Path = SAMPLE) -> Ranking:
    """Return every label with timm's score, best first."""
    network = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=network))
    names = json.loads((checkpoint / "config.json").read_text()).get("label_names")
    labels = names or ImageNetInfo(infer_imagenet_subset(network)).label_descriptions()
    with torch.inference_mode():
        logits = network(transform(Image.open(io.BytesIO(image)).convert("RGB"))[None])
    scores = logits.softmax(dim=1)[0].tolist()
    ranking = [{"label": n, "score": s} for n, s in zip(labels, scores, strict=True)]
    return sorted(ranking, key=lambda named: -named["score"])


def rank(server: LocalServer, *images: bytes) -> list[Ranking]:
    answer = requests.post(server.url + INFER, json=request_for(*images), timeout=60)
    assert answer.ok, answer.text
    return rankings_in(answer.json())


def infer(server: LocalServer, tensor: dict[str, Any], timeout: float = 60) -> requests.Response:
    return requests.post(server.url + INFER, json={"inputs": [tensor]}, timeout=timeout)


def assert_same(found: Ranking, expected: Ranking, tolerance: float) -> None:
    """Assert equal labels and scores in the same order."""
    expected = expected[: len(found)]
    assert found
    assert [named["label"] for named in found] == [named["label"] for named in expected]
    scores = [named["score"] for named in expected]
    assert [named["score"] for named in found] == pytest.approx(scores, abs=tolerance)


@pytest.mark.parametrize("name", IMAGES)
def test_agrees_with_timm(server: LocalServer, name: str) -> None:
    [ranking] = rank(server, IMAGES[name])
    assert len(ranking) == 5
    assert LABELS[name] in [prediction["label"] for prediction in ranking]
    assert_same(ranking, timm_ranking(IMAGES[name]), tolerance=1e-6)


def test_concurrent_clients_get_their_own_responses(server: LocalServer) -> None:
    expected = [timm_ranking(image) for image in IMAGES.values()] * 8
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda image: rank(server, image), [*IMAGES.values()] * 8))
    for [ranking], timms in zip(responses, expected, strict=True):
        assert_same(ranking, timms, tolerance=1e-6)


def test_top_k_is_an_input(server: LocalServer) -> None:
    body = request_for(IMAGES["cat.jpg"])
    parameters = {"content_type": "raw"}
    top_k = {"name": "top_k", "datatype": "INT32", "shape": [1], "data": [2]}
    body["inputs"].append({**top_k, "parameters": parameters})
    [ranking] = rankings_in(requests.post(server.url + INFER, json=body, timeout=60).json())
    assert_same(ranking, timm_ranking(IMAGES["cat.jpg"]), tolerance=1e-6)
    assert len(ranking) == 2


def test_explicit_uri_wins(serve: Serve, tmp_path: Path) -> None:
    """MLSERVER_MODEL_URI names a checkpoint with its own labels, as with tinyvit/."""
    torch.manual_seed(0)
    checkpoint, labels = tmp_path / "pets", {"label_names": ["cat", "cup", "dog"]}
    network = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=3)
    timm.models.save_for_hf(network, checkpoint, model_config=labels, safe_serialization=True)
    server = serve(MLSERVER_MODEL_URI=str(checkpoint)).wait(PATIENCE, "huggingface")
    [ranking] = rank(server, IMAGES["cat.jpg"])
    assert len(ranking) == 3
    assert_same(ranking, timm_ranking(IMAGES["cat.jpg"], checkpoint), tolerance=1e-6)


def test_optimum_serves_what_export_wrote(serve: Serve, tmp_path: Path) -> None:
    """The folder has no weights but those for ONNX Runtime."""
    export(SAMPLE, tmp_path / "onnx")
    assert sorted(p.name for p in (tmp_path / "onnx").iterdir()) == ["config.json", "model.onnx"]
    extra = {"optimum_model": True, "model_kwargs": None}
    repository = copy_repository(tmp_path / "repository", extra=extra)
    server = serve(repository / "huggingface", MLSERVER_MODEL_URI=str(tmp_path / "onnx"))
    server.wait(PATIENCE, "huggingface")
    for image in IMAGES.values():
        assert_same(rank(server, image)[0], timm_ranking(image), tolerance=1e-5)


def test_requests_can_name_files_of_the_server(server: LocalServer) -> None:
    """The pipeline takes text as a path or a URL; the README warns of it."""
    path = str(ROOT / "imgs" / "coffee.jpg")
    answer = infer(server, {"name": "inputs", "datatype": "BYTES", "shape": [1], "data": [path]})
    assert rankings_in(answer.json())[0][0]["label"] == "espresso"


def test_fetching_a_url_blocks_the_server(server: LocalServer) -> None:
    """Until the other site answers, no other request is answered; the README warns of it."""
    may_answer = threading.Event()

    def answer_late(handler: Any) -> None:
        may_answer.wait(60)
        reply(handler, 200, IMAGES["coffee.jpg"])

    with http_server(answer_late) as url, ThreadPoolExecutor(1) as client:
        tensor = {"name": "inputs", "datatype": "BYTES", "shape": [1], "data": [url]}
        answer = client.submit(infer, server, tensor)
        deadline = time.monotonic() + 30
        with pytest.raises(requests.Timeout):
            while time.monotonic() < deadline:
                requests.get(f"{server.url}/v2/health/live", timeout=2)
        may_answer.set()
        assert rankings_in(answer.result().json())[0][0]["label"] == "espresso"


def rank_by_tinyvit(server: LocalServer, image: bytes) -> Ranking:
    data = base64.b64encode(image).decode()
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1], "data": [data]}
    body = {"inputs": [{**tensor, "parameters": {"content_type": "base64"}}]}
    answer = requests.post(f"{server.url}/v2/models/tinyvit/infer", json=body, timeout=60)
    assert answer.ok, answer.text
    labels, scores = (output["data"] for output in answer.json()["outputs"])
    return [{"label": n, "score": s} for n, s in zip(labels, scores, strict=True)]


@pytest.mark.parametrize("name", IMAGES)
def test_agrees_with_tinyvit_model(both: LocalServer, name: str) -> None:
    [ranking] = rank(both, IMAGES[name])
    assert_same(ranking, rank_by_tinyvit(both, IMAGES[name]), tolerance=1e-4)


def test_tinyvit_model_serves_what_transformers_saves(tmp_path: Path) -> None:
    """`save_pretrained` writes null for absent values, and names the weights as it likes."""
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "saved"
    shutil.copytree(SAMPLE, checkpoint)
    config = json.loads((SAMPLE / "config.json").read_text())
    del config["model_args"]  # as on the hub; transformers cannot read a num_classes in it
    (checkpoint / "config.json").write_text(json.dumps(config))
    TimmWrapperForImageClassification.from_pretrained(checkpoint).save_pretrained(folder)
    assert None in json.loads((folder / "config.json").read_text()).values()
    variables = {"MLSERVER_MODEL_URI": str(folder)}
    mlserver = MAIN / "bin" / "mlserver"
    server = start_server(ROOT / "tinyvit", tmp_path, mlserver, environment=variables)
    try:
        server.wait(PATIENCE)
        for image in IMAGES.values():
            assert_same(rank_by_tinyvit(server, image), timm_ranking(image), tolerance=1e-4)
    finally:
        server.kill()


def test_one_server_holds_both_environments(both: LocalServer) -> None:
    """Neither environment could serve the other model."""
    assert not list(MAIN.glob("lib/python*/site-packages/transformers"))
    assert find_spec("openvino") is None
    metadata = [requests.get(f"{both.url}/v2/models/{name}").json() for name in BOTH]
    assert [model["platform"] for model in metadata] == ["timm", "transformers"]
    for name in BOTH:
        assert requests.get(f"{both.url}/v2/models/{name}/ready").ok


BATCHING = {"max_batch_size": 8, "max_batch_time": 0.1}
OPTIMUM = {"extra": {"optimum_model": True, "model_kwargs": None}}
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "batching is for text only": (BATCHING, "object has no attribute 'pad_token_id'"),
    "optimum without an export takes the folder for a hub id": (
        {"parameters": OPTIMUM},
        "Repo id must be in the form 'repo_name' or 'namespace/repo_name'",
    ),
}


@pytest.mark.parametrize("reason", FAILURES)
def test_settings_that_fail(serve: Serve, tmp_path: Path, reason: str) -> None:
    """docs/huggingface.md warns of each."""
    settings, error = FAILURES[reason]
    settings = dict(settings)
    repository = copy_repository(tmp_path / "repository", **settings.pop("parameters", {}))
    path = repository / "huggingface" / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    server = serve(repository / "huggingface")
    server.process.wait(PATIENCE)
    assert error in server.output()


def test_environment_without_a_tarball_is_imported_by_the_main_process(tmp_path: Path) -> None:
    """MLServer 1.7.1 keeps a runtime out of the main process only if there is a tarball."""
    path = OWN_ENVIRONMENT["environment_path"]
    repository = copy_repository(tmp_path / "repository", workers=1, environment_path=path)
    server = start_server(repository, tmp_path, MAIN / "bin" / "mlserver")
    try:
        server.process.wait(PATIENCE)
    finally:
        server.kill()
    assert "No module named 'transformers'" in server.output()


def test_demo_names_the_cat() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert "tabby, tabby cat" in done.stdout
    assert not done.stderr
