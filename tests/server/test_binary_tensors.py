"""The binary tensor data extension gives the same answers as JSON.

tests/unit/protocol/test_json_body.py has all datatypes and refusals.
"""

import gzip
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.app import App
from tests.support.binary_tensors import HEADER, binary_tensor, elements, read, send
from tests.support.clients import COFFEE, LABEL, assert_refused, body, infer, tensor, text
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
PIXELS = np.asarray(Image.open(COFFEE).convert("RGB").resize((60, 45)))
ARRAY = PIXELS.tobytes()
SHAPE = list(PIXELS.shape)
BINARY_OUTPUT = {"binary_data_output": True}


def array_request(**more: Any) -> dict[str, Any]:
    return body(binary_tensor(ARRAY, SHAPE, "UINT8"), **more)


def in_json(app: App, *inputs: Any, **more: Any) -> dict[str, Any]:
    return read(infer(app, body(*inputs, **more)))


@pytest.fixture(scope="module")
def expected(app: App) -> dict[str, Any]:
    """The outputs for PIXELS."""
    return in_json(app, tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8"))


def test_files(app: App) -> None:
    """The second one is base64."""
    data = elements(FILE, text(GOOD).encode())
    outputs = read(send(app, body(binary_tensor(data, [2, 1], "BYTES")), data))
    assert outputs == in_json(app, tensor([text(FILE), text(GOOD)]))
    assert outputs["labels"][0] == LABEL


def test_the_header_with_json_alone_changes_nothing(app: App, expected: Any) -> None:
    assert read(send(app, body(tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8")))) == expected


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "x/y"])
@pytest.mark.parametrize("path", ["infer", "generate"])
def test_any_content_type(app: App, expected: Any, kind: str, path: str) -> None:
    response = send(app, array_request(), ARRAY, path=path, **{"Content-Type": kind})
    assert read(response) == expected


def test_binary_outputs(app: App) -> None:
    """In the order requested; an output's own `binary_data` overrides the request's."""
    names = ["scores", "labels", "logits", "embedding"]
    outputs: list[dict[str, Any]] = [{"name": name} for name in names]
    response = send(app, array_request(outputs=outputs, parameters=BINARY_OUTPUT), ARRAY)
    assert response.headers["Content-Type"] == "application/octet-stream"
    binary = read(response)
    assert list(binary) == names
    assert binary == read(send(app, array_request(outputs=outputs), ARRAY))
    outputs[1]["parameters"] = {"binary_data": False}
    response = send(app, array_request(outputs=outputs, parameters=BINARY_OUTPUT), ARRAY)
    content = json.loads(response.content[: int(response.headers[HEADER])])
    assert ["data" in output for output in content["outputs"]] == [False, True, False, False]
    assert read(response) == binary


def test_gzip_both_ways(app: App, expected: Any) -> None:
    header = json.dumps(array_request(parameters=BINARY_OUTPUT)).encode()
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    packed = gzip.compress(header + ARRAY)
    assert read(send(app, packed, length=len(header), **headers)) == expected


def test_refusals(app: App) -> None:
    head = json.dumps(array_request()).encode()
    for length in ("", "x", "9" * 40, len(head) - 1, len(head) + 1):
        assert_refused(send(app, array_request(), ARRAY, length=length))
    assert "8101 bytes" in assert_refused(send(app, array_request(), ARRAY + b"x"))
    assert HEADER in assert_refused(infer(app, head))
    assert_refused(infer(app, head + ARRAY))
