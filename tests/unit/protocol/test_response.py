"""Answers: the best labels, and their encodings."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse

from mlserver_timm.protocol.request import ClassificationRequest
from mlserver_timm.protocol.response import (
    ClassificationResponse,
    classification_response,
    declared_outputs,
    encode,
    encode_rankings,
    top,
)

LABELS = ["tiger cat", "tabby, tabby cat", "Kätzchen"]
LOGITS = np.array([[1.0, 3.0, 2.0], [0.1, -1.0, 1e-7]], np.float32)
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)).astype(np.float32)
RESULTS = {"logits": LOGITS, "probabilities": PROBABILITIES, "embedding": LOGITS[:, :2] * 7}


def answer(
    outputs: tuple[str, ...] = ("labels", "scores"),
    function: str = "softmax",
    images: int = 2,
    top_k: int = 2,
    version: str | None = None,
    identifier: str | None = "x",
) -> ClassificationResponse:
    request = ClassificationRequest((), top_k, outputs, function, identifier)
    results = {name: rows[:images] for name, rows in RESULTS.items()}
    return classification_response(request, results, LABELS, "tinyvit", version)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Return scores `[N,classes]`, many of them equal, and k."""
    classes = draw(st.integers(1, 100))
    row = st.lists(
        st.sampled_from([0.0, 1e-40, 0.25, 0.5, 1.0]), min_size=classes, max_size=classes
    )
    drawn = draw(st.lists(row, min_size=1, max_size=3))
    return np.array(drawn, np.float32), draw(st.integers(1, classes))


@given(rows())
def test_top(drawn: tuple[np.ndarray, int]) -> None:
    """Best first; equal scores keep their order, as in a stable sort."""
    scores, k = drawn
    before = scores.copy()
    np.testing.assert_array_equal(top(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(scores, before)


def test_json_as_mlserver_writes_it() -> None:
    """Byte for byte: the order of the fields, and floats with all the digits of a double."""
    request = ClassificationRequest((), 2, ("labels", "scores"), id="x")
    results = {"probabilities": np.array([[0.1, 0.7, 0.2]], np.float32)}
    response = classification_response(request, results, LABELS, "tinyvit")
    assert encode(response)[0].decode() == (
        '{"model_name":"tinyvit","id":"x","parameters":{},"outputs":['
        '{"name":"labels","shape":[1,2],"datatype":"BYTES","parameters":{"content_type":"str"},'
        '"data":["tabby, tabby cat","Kätzchen"]},'
        '{"name":"scores","shape":[1,2],"datatype":"FP32","parameters":{"content_type":"np"},'
        '"data":[0.699999988079071,0.20000000298023224]}]}'
    )


def test_version_and_id() -> None:
    content = json.loads(encode(answer(version="v2", identifier=None))[0])
    assert list(content) == ["model_name", "model_version", "parameters", "outputs"]
    assert content["model_version"] == "v2"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_floats_keep_every_bit(values: list[float]) -> None:
    logits = np.array([values], np.float32)
    request = ClassificationRequest((), 1, ("logits",))
    response = classification_response(request, {"logits": logits}, [], "x")
    [output] = json.loads(encode(response)[0])["outputs"]
    assert output["data"] == values
    assert np.array(output["data"], np.float32).tobytes() == logits.tobytes()
    _, [tensor] = encode(replace(response, binary_outputs=frozenset(["logits"])))
    assert tensor == logits.astype("<f4").tobytes()


def test_mlservers_codecs_decode_it() -> None:
    response = InferenceResponse(**json.loads(encode(answer(("labels", "scores", "logits")))[0]))
    labels, scores, logits = response.outputs
    assert StringCodec.decode_output(labels)[:2] == [LABELS[1], LABELS[2]]
    np.testing.assert_array_equal(NumpyCodec.decode_output(logits), LOGITS)
    assert (
        NumpyCodec.decode_output(scores).shape == NumpyCodec.decode_output(labels).shape == (2, 2)
    )


@pytest.mark.parametrize("names", [("embedding",), ("logits", "scores"), ("scores", "labels")])
def test_outputs_in_their_order(names: tuple[str, ...]) -> None:
    response = answer(names)
    assert [output.name for output in response.outputs] == list(names)
    expected = {"embedding": (2, 2), "logits": (2, 3), "scores": (2, 2), "labels": (2, 2)}
    assert [output.shape for output in response.outputs] == [expected[name] for name in names]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("softmax", -np.sort(-PROBABILITIES, axis=1)),
        ("sigmoid", 1 / (1 + np.exp(np.sort(-LOGITS, axis=1)))),
        ("none", -np.sort(-LOGITS, axis=1)),
    ],
)
def test_functions(function: str, scores: np.ndarray) -> None:
    [output] = answer(("scores",), function, top_k=3).outputs
    np.testing.assert_allclose(np.asarray(output.data), scores, rtol=1e-6)


def test_sigmoid_of_large_logits() -> None:
    request = ClassificationRequest((), 2, ("scores",), "sigmoid")
    results = {"logits": np.array([[-1e30, 1e30]], np.float32)}
    [output] = classification_response(request, results, ["a", "b"], "x").outputs
    assert np.asarray(output.data).tolist() == [[1.0, 0.0]]


def test_binary_outputs() -> None:
    """They follow the JSON in order, and it has their sizes."""
    response = answer(("scores", "labels", "logits"))
    head, tensors = encode(replace(response, binary_outputs=frozenset(["labels", "logits"])))
    scores, labels, logits = json.loads(head)["outputs"]
    assert "data" in scores and "data" not in labels and "data" not in logits
    texts = [label.encode() for label in ("tabby, tabby cat", "Kätzchen", "tiger cat", "Kätzchen")]
    assert tensors[0] == b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert tensors[1] == LOGITS.tobytes()
    sizes = [one["parameters"]["binary_data_size"] for one in (labels, logits)]
    assert sizes == [len(tensor) for tensor in tensors]
    assert list(labels) == ["name", "shape", "datatype", "parameters"]


def test_rankings() -> None:
    expected = [
        [("tabby, tabby cat", PROBABILITIES[0, 1]), ("Kätzchen", PROBABILITIES[0, 2])],
        [("tiger cat", PROBABILITIES[1, 0]), ("Kätzchen", PROBABILITIES[1, 2])],
    ]
    ranked = json.loads(encode_rankings(answer(("scores", "labels"))))
    assert [[(one["label"], one["score"]) for one in image] for image in ranked] == expected
    assert json.loads(encode_rankings(answer(images=1))) == ranked[0]


def test_declared_outputs() -> None:
    """Every output that a request may name, with the shape that answers have."""
    declared = declared_outputs({"probabilities": 3, "embedding": 2, "logits": 3})
    assert declared == [
        ("labels", "BYTES", [-1, -1]),
        ("scores", "FP32", [-1, -1]),
        ("logits", "FP32", [-1, 3]),
        ("embedding", "FP32", [-1, 2]),
    ]
    assert len(declared_outputs({"probabilities": 3})) == 2
