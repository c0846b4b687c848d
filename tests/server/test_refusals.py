"""Refusals of each kind over each way in. tests/unit/protocol has every reason and sentence."""

import json
from typing import Any

import pytest

from tests.support.app import App
from tests.support.clients import assert_refused, body, classify, infer, message, tensor, text
from tests.support.refusals import GOOD, JSON, PIXELS, array, refused

BODIES: dict[str, Any] = {
    "no-json": b"hello",
    "no-object": [],
    "wrong-shape": array([12]),
    "one-of-two-damaged": body(tensor([text(GOOD), text(GOOD[:90])])),
    "too-many-images": body(tensor([text(GOOD)] * 65)),
    "wrong-id": body(tensor(GOOD), id="a\r\nSet-Cookie: b=c"),
}


@pytest.mark.parametrize("name", BODIES)
def test_json(app: App, name: str) -> None:
    assert_refused(infer(app, BODIES[name], headers=JSON))


def test_unsupported_content_type(app: App) -> None:
    data = json.dumps(body(tensor(GOOD))).encode()
    error = assert_refused(infer(app, data, headers={"Content-Type": "text/plain"}))
    assert "application/json" in error


MESSAGES = {
    "wrong-count": message([2, 2, 3], "UINT8", uint_contents=PIXELS[:-1]),
    "wrong-raw-size": message([2, 2, 3], "UINT8", raw=[bytes(11)]),
    "too-many-images": message([65], bytes_contents=[GOOD] * 65),
    "wrong-base64": message(bytes_contents=[b"!!"], tensor_parameters={"content_type": "base64"}),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_grpc_message(app: App, name: str) -> None:
    refused(app, MESSAGES[name])


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
