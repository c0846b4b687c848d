"""Options of a request: top_k, other parameters, outputs, id."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from PIL import Image

from tests.support.answers import answers, assert_timms_answers
from tests.support.app import App
from tests.support.clients import (
    CLASSES,
    COFFEE,
    assert_refused,
    body,
    classify,
    infer,
    message,
    request,
    stub,
    tensor,
    text,
)
from tests.support.refusals import GOOD, array
from tests.support.timm_reference import TOLERANCE, timm_reference

FILE = COFFEE.read_bytes()
IMAGE = Image.open(COFFEE).convert("RGB")
OUTPUTS = ["labels", "scores", "logits", "embedding"]


# --- top_k ------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 17, CLASSES])
def test_top_k(app: App, top_k: int) -> None:
    request = body(tensor(FILE), parameters={"top_k": top_k})
    assert_timms_answers(app, request, IMAGE, k=top_k)
    ((labels, scores),) = answers(app, request)
    assert scores == sorted(scores, reverse=True)
    if top_k == CLASSES:
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    ranking = classify(app, FILE, params={"top_k": top_k}).json()
    assert [one["label"] for one in ranking] == labels


@pytest.mark.parametrize(
    ("of_request", "of_input", "expected"),
    [({}, {}, 2), ({"top_k": 3}, {}, 3), ({"top_k": 3}, {"top_k": 4}, 4)],
)
def test_the_innermost_top_k_counts(
    app: App, of_request: Any, of_input: Any, expected: int
) -> None:
    """That of the input, then of the request, then of the URL."""
    content = body(tensor(FILE, parameters=of_input), parameters=of_request)
    for route in ("infer", "generate"):
        url = f"/v2/models/tinyvit/{route}"
        response = request(app, "POST", url, params={"top_k": 2}, json=content)
        assert response.json()["outputs"][0]["shape"] == [1, expected]
    grpc = message(bytes_contents=[FILE], params=of_request, tensor_parameters=of_input)
    of_grpc = stub(app).ModelInfer(grpc, timeout=60).outputs[0].shape[1]
    assert of_grpc == (5 if expected == 2 else expected)


# --- Other parameters -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["temperature", "cls", "model_config"])
def test_other_parameters_are_ignored(app: App, name: str) -> None:
    content = body(tensor(GOOD, parameters={name: 1}), parameters={name: "x"})
    assert infer(app, content, params={name: "x"}).json()["outputs"][0]["shape"] == [1, 5]


def test_a_parameter_named_headers_is_ignored(app: App) -> None:
    """MLServer puts the request's real headers under this name."""
    response = infer(app, body(tensor(GOOD), parameters={"headers": {"x": "y"}}))
    assert response.status_code == 200 and "headers" not in response.json()["parameters"]


# --- Outputs ----------------------------------------------------------------------------------


def test_logits_and_embedding_are_timms(app: App) -> None:
    """The softmax of the logits are the scores; timm's last layer makes logits of the embedding."""
    names = ["logits", "embedding", "scores"]
    request = body(
        tensor([text(FILE)] * 2),
        outputs=[{"name": name} for name in names],
        parameters={"top_k": CLASSES},
    )
    response = InferenceResponse(**infer(app, request).json())
    assert [output.name for output in response.outputs] == names
    logits, embedding, scores = map(NumpyCodec.decode_output, response.outputs)
    expected = timm_reference().features(IMAGE)
    atol = TOLERANCE * expected.max()
    np.testing.assert_allclose(embedding, [expected] * 2, rtol=0, atol=atol)
    classifier = timm_reference().network.get_classifier()
    weight, bias = (each.detach().numpy() for each in (classifier.weight, classifier.bias))
    np.testing.assert_allclose(embedding @ weight.T + bias, logits, rtol=0, atol=1e-3)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = timm_reference().probabilities(IMAGE)
    np.testing.assert_allclose(softmax, [probabilities] * 2, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(-np.sort(-softmax, axis=1), scores, rtol=0, atol=1e-5)


def test_metadata_declares_all_outputs(app: App) -> None:
    metadata = request(app, "GET", "/v2/models/tinyvit").json()
    declared = {output["name"]: output for output in metadata["outputs"]}
    assert list(declared) == OUTPUTS
    content = body(tensor([text(GOOD)] * 2), outputs=[{"name": name} for name in OUTPUTS])
    for output in infer(app, content).json()["outputs"]:
        shape = declared[output["name"]]["shape"]
        assert output["datatype"] == declared[output["name"]]["datatype"]
        assert all(d in (-1, got) for d, got in zip(shape, output["shape"], strict=True)), output


# --- id and form of the response --------------------------------------------------------------


def test_a_missing_id_is_generated(app: App) -> None:
    first, second = (infer(app, body(tensor(GOOD))).json()["id"] for _ in range(2))
    assert first and second and first != second


def test_responses_have_mlservers_form(app: App) -> None:
    response = infer(app, body(tensor(GOOD), id="x", outputs=[{"name": "scores"}]))
    assert list(response.json()) == ["model_name", "id", "parameters", "outputs"]
    (scores,) = response.json()["outputs"]
    assert list(scores) == ["name", "shape", "datatype", "parameters", "data"]
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Ce-Id"] == response.headers["Ce-Requestid"] == "x"


@pytest.mark.parametrize("route", ["infer_stream", "generate_stream"])
def test_stream_is_one_event_and_a_refusal_has_its_status(app: App, route: str) -> None:
    url = f"/v2/models/tinyvit/{route}"
    assert_refused(request(app, "POST", url, json=array([12])))
    assert_refused(request(app, "POST", url, json=body(tensor(b"hello"))))
    unknown = request(app, "POST", url.replace("tinyvit", "nobody"), json=array([12]))
    assert unknown.status_code == 404 and unknown.json()["error"]
    response = request(app, "POST", url, json=body(tensor(FILE)))
    assert response.headers["content-type"].startswith("text/event-stream")
    (event,) = [line for line in response.text.split("\n\n") if line]
    outputs = json.loads(event.removeprefix("data: "))["outputs"]
    assert outputs == infer(app, body(tensor(FILE))).json()["outputs"]
    for binary in (
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": n, "parameters": {"binary_data": True}} for n in OUTPUTS[:2]]},
    ):  # an event cannot hold binary tensors
        response = request(app, "POST", url, json=body(tensor(FILE), **binary))
        assert json.loads(response.text.removeprefix("data: "))["outputs"] == outputs


def test_a_model_may_have_any_name(make_app: Callable[..., App]) -> None:
    """Headers, which MLServer fills with the name, are ASCII only."""
    app = make_app(name="кот")
    response = request(app, "POST", "/v2/models/кот/infer", json=body(tensor(FILE)))
    assert response.status_code == 200 and response.json()["model_name"] == "кот"
    answer = stub(app).ModelInfer(message(bytes_contents=[FILE], model="кот"), timeout=60)
    assert answer.model_name == "кот"
