"""What a request asks for besides its images: top_k, outputs, id."""

import numpy as np
import pytest
import torch
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse
from PIL import Image

from client.local import LocalServer
from tests.support.answers import answers, assert_true
from tests.support.clients import (
    CLASSES,
    COFFEE,
    LABEL,
    body,
    classify,
    image_file,
    infer,
    message,
    stub,
    tensor,
    text,
)
from tests.support.timm_reference import TOLERANCE, truth


@pytest.mark.parametrize("top_k", [1, 2, 5, 17, CLASSES - 1, CLASSES])
def test_top_k(either_server: LocalServer, top_k: int) -> None:
    file, picture = COFFEE.read_bytes(), Image.open(COFFEE).convert("RGB")
    request = body(tensor(file), parameters={"top_k": top_k})
    assert_true(either_server, request, picture, k=top_k)
    (labels, scores) = answers(either_server, request)[0]
    assert scores == sorted(scores, reverse=True)
    assert len(labels) == top_k
    if top_k == CLASSES:
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    short = classify(either_server, file, params={"top_k": top_k}).json()
    assert [one["label"] for one in short] == labels


@pytest.mark.parametrize("top_k", [CLASSES + 1, 10**9, 2**70])
def test_top_k_over_the_number_of_classes(either_server: LocalServer, top_k: int) -> None:
    """All classes are answered, as Hugging Face does."""
    request = body(tensor(COFFEE.read_bytes()), parameters={"top_k": top_k})
    assert len(answers(either_server, request)[0][0]) == CLASSES


def test_labels_come_first(either_server: LocalServer) -> None:
    """The lab's own listing reads no more than this."""
    response = infer(either_server, body(tensor(COFFEE.read_bytes()))).json()
    assert response["outputs"][0]["data"] == truth().ranking(Image.open(COFFEE).convert("RGB"))[0]
    assert response["outputs"][0]["data"][0] == LABEL


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (["scores"], ["scores"]),
        (["labels"], ["labels"]),
        (["scores", "labels"], ["scores", "labels"]),
        (["labels", "scores"], ["labels", "scores"]),
        (["scores", "scores"], ["scores"]),
        ([], ["labels", "scores"]),
    ],
)
def test_outputs(either_server: LocalServer, asked: list[str], given: list[str]) -> None:
    one = tensor(image_file("PNG"))
    whole = infer(either_server, body(one)).json()["outputs"]
    part = infer(either_server, body(one, outputs=[{"name": name} for name in asked])).json()
    assert part["outputs"] == [
        next(output for output in whole if output["name"] == name) for name in given
    ]


def test_codecs_decode_the_outputs(either_server: LocalServer) -> None:
    request = body(tensor([text(image_file("PNG"))] * 2), parameters={"top_k": 3})
    raw = infer(either_server, request).json()
    labels, scores = InferenceResponse(**raw).outputs
    assert StringCodec.decode_output(labels) == raw["outputs"][0]["data"]
    array = NumpyCodec.decode_output(scores)
    assert array.shape == (2, 3) and array.dtype == np.float32
    assert array.ravel().tolist() == raw["outputs"][1]["data"]
    assert NumpyCodec.decode_output(labels).shape == (2, 3)


@pytest.mark.parametrize("identifier", ["a", "cat 1/2: #7", "x" * 256])
def test_id_is_echoed(either_server: LocalServer, identifier: str) -> None:
    answer = infer(either_server, body(tensor(image_file("PNG")), id=identifier)).json()
    assert answer["id"] == identifier
    assert answer["model_name"] == "tinyvit"
    request = message(bytes_contents=[image_file("PNG")], identifier=identifier)
    assert stub(either_server).ModelInfer(request, timeout=60).id == identifier


def test_without_an_id(either_server: LocalServer) -> None:
    request = body(tensor(image_file("PNG")))
    given = {infer(either_server, request).json()["id"] for _ in range(2)}
    assert len(given) == 2 and all(given)


def test_logits_and_embedding_come_on_request(either_server: LocalServer) -> None:
    """What the network itself computes: logits whose softmax are the scores, and features from
    which its last layer makes them."""
    names = ("logits", "embedding", "scores")
    request = body(
        tensor([text(COFFEE.read_bytes())] * 2),
        outputs=[{"name": name} for name in names],
        parameters={"top_k": CLASSES},
    )
    response = InferenceResponse(**infer(either_server, request).json())
    assert [output.name for output in response.outputs] == list(names)
    logits, embedding, scores = map(NumpyCodec.decode_output, response.outputs)
    exact = truth()
    classifier = exact.network.get_classifier()
    assert embedding.shape == (2, classifier.in_features)
    weight, bias = (each.detach().numpy() for each in (classifier.weight, classifier.bias))
    np.testing.assert_allclose(embedding @ weight.T + bias, logits, rtol=0, atol=1e-3)
    picture = exact.transform(Image.open(COFFEE).convert("RGB"))[None]
    with torch.inference_mode():
        timms = exact.network(picture)[0].numpy()
    np.testing.assert_allclose(logits, [timms] * 2, rtol=0, atol=1e-4 * abs(timms).max())
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = exact.probabilities(Image.open(COFFEE).convert("RGB"))
    np.testing.assert_allclose(softmax, [wanted] * 2, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(-np.sort(-softmax, axis=1), scores, rtol=0, atol=1e-5)
