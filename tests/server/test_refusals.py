"""Refusals of each kind over each way in. tests/unit/protocol has every reason and sentence."""

import json
from typing import Any

import pytest
from mlserver.grpc import dataplane_pb2 as pb

from tests.support.app import App
from tests.support.clients import assert_refused, body, classify, infer, message, tensor, text
from tests.support.refusals import GOOD, JSON, PIXELS, array, refused

BODIES: dict[str, Any] = {
    "no-inputs": {},
    "no-object": [],
    "no-shape": body({"name": "payload", "datatype": "UINT8", "data": PIXELS}),
    "wrong-name": body(tensor(GOOD, name="image")),
    "wrong-count": array([2, 2, 3], PIXELS[:-1]),
    "wrong-shape": array([12]),
    "wrong-value": array([2, 2, 3], [*PIXELS[:-1], 256]),
    "wrong-datatype": array([2, 2, 3], [0.5] * 12, "FP32"),
    "wrong-base64": body(tensor(["!!!!"])),
    "one-of-two-damaged": body(tensor([text(GOOD), text(GOOD[:90])])),
    "too-many-images": body(tensor([text(GOOD)] * 65)),
    "unknown-output": body(tensor(GOOD), outputs=[{"name": "boxes"}]),
    "wrong-id": body(tensor(GOOD), id="a\r\nSet-Cookie: b=c"),
    "wrong-top-k": body(tensor(GOOD), parameters={"top_k": 0}),
    "wrong-parameter": body(tensor(GOOD), parameters={"other": [1]}),
    "shared-memory": body(tensor(GOOD, parameters={"shared_memory_region": "x"})),
}


@pytest.mark.parametrize("name", BODIES)
def test_json(app: App, name: str) -> None:
    assert_refused(infer(app, json.dumps(BODIES[name]).encode(), headers=JSON))


@pytest.mark.parametrize("data", [b"", b"hello", b'{"inputs": "\xff"}', b"[" * 100_000, GOOD])
def test_broken_json(app: App, data: bytes) -> None:
    assert_refused(infer(app, data, headers=JSON))


def test_unsupported_content_type(app: App) -> None:
    data = json.dumps(body(tensor(GOOD))).encode()
    error = assert_refused(infer(app, data, headers={"Content-Type": "text/plain"}))
    assert "application/json" in error


MESSAGES = {
    "no-inputs": message(count=0),
    "wrong-count": message([2, 2, 3], "UINT8", uint_contents=PIXELS[:-1]),
    "wrong-value": message([2, 2, 3], "INT32", int_contents=[-1] * 12),
    "wrong-datatype": message([2, 2, 3], "FP32", fp32_contents=[0.5] * 12),
    "wrong-raw-size": message([2, 2, 3], "UINT8", raw=[bytes(11)]),
    "too-many-images": message([65], bytes_contents=[GOOD] * 65),
    "wrong-base64": message(bytes_contents=[b"!!"], tensor_parameters={"content_type": "base64"}),
    "unknown-output": message(bytes_contents=[GOOD], outputs=("boxes",)),
    "wrong-id": message(bytes_contents=[GOOD], identifier="a\r\nb"),
    "wrong-top-k": message(bytes_contents=[GOOD], params={"top_k": 0}),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_grpc_message(app: App, name: str) -> None:
    request: pb.ModelInferRequest = MESSAGES[name]
    refused(app, request)


@pytest.mark.parametrize(
    "content", [{}, {"inputs": "!!!"}, {"inputs": text(GOOD), "parameters": {"topk": 3}}]
)
def test_hugging_face_json(app: App, content: Any) -> None:
    assert_refused(classify(app, json.dumps(content).encode()))


@pytest.mark.parametrize("name", ["topk", "topK"])
def test_misspelt_parameters(app: App, name: str) -> None:
    """The error names both spellings, wherever the parameter stands."""
    wrong = {name: 3}
    for error in (
        assert_refused(infer(app, body(tensor(GOOD), parameters=wrong))),
        assert_refused(infer(app, body(tensor(GOOD)) | wrong)),
        assert_refused(infer(app, body(tensor(GOOD)), params=wrong)),
        assert_refused(classify(app, GOOD, params=wrong)),
        refused(app, message(bytes_contents=[GOOD], params=wrong)),
    ):
        assert f"'{name}'" in error and "'top_k'" in error
