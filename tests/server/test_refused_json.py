"""Invalid JSON requests get status 400 and one sentence."""

import json
from typing import Any

import pytest

from tests.support.app import App
from tests.support.clients import assert_refused, body, classify, infer, tensor, text
from tests.support.refusals import GOOD, JSON, PIXELS, array


def without(key: str) -> dict[str, Any]:
    whole = tensor(PIXELS, [2, 2, 3], "UINT8")
    return body({k: v for k, v in whole.items() if k != key})


BODIES: dict[str, Any] = {
    "nothing": {},
    "no-inputs": body(),
    "null-inputs": {"inputs": None},
    "inputs-object": {"inputs": {"payload": PIXELS}},
    "inputs-of-numbers": body(1, 2),
    "inputs-of-null": body(None),
    "doubled": body(tensor(GOOD), tensor(GOOD)),
    "extra": body(tensor(GOOD), tensor(GOOD, name="mask")),
    "misnamed": body(tensor(GOOD, name="image")),
    "name-in-capitals": body(tensor(GOOD, name="Payload")),
    "name-of-a-path": body(tensor(GOOD, name="../../etc/passwd")),
    "name-null": body(tensor(GOOD, name=None)),
    "name-long": body(tensor(GOOD, name="x" * 100_000)),
    "no-name": without("name"),
    "no-shape": without("shape"),
    "no-datatype": without("datatype"),
    "no-data": without("data"),
    "too-few-values": array([2, 2, 3], PIXELS[:-1]),
    "too-many-values": array([2, 2, 3], [*PIXELS, 1]),
    "no-values": array([2, 2, 3], []),
    "shape-empty": array([]),
    "shape-null": body({**tensor(PIXELS, [], "UINT8"), "shape": None}),
    "shape-text": array("2,2,3"),
    "shape-of-text": array(["2", "x", 3]),
    "shape-of-floats": array([2.5, 2, 3]),
    "shape-nested": array([[2, 2, 3]]),
    "negative": array([-2, -2, 3]),
    "minus-one": array([-1, 2, 2, 3]),
    "zero-height": array([0, 2, 3], []),
    "zero-images": array([0, 2, 2, 3], []),
    "zero-channels": array([2, 2, 0], []),
    "absurd": array([2**40, 2**40, 3]),
    "beyond-64-bits": array([2**70, 2, 3]),
    "absurd-batch": array([2**40, 2, 2, 3]),
    "1-dimension": array([12]),
    "2-dimensions": array([3, 5]),
    "5-dimensions": array([1, 1, 2, 2, 3]),
    "2-channels": array([2, 3, 2]),
    "channels-first": array([3, 2, 2]),
    "256": array([2, 2, 3], [*PIXELS[:-1], 256]),
    "minus-1": array([2, 2, 3], [*PIXELS[:-1], -1], "INT16"),
    "huge-values": array([2, 2, 3], [2**40] * 12, "INT64"),
    "floats": array([2, 2, 3], [0.5] * 12),
    "round-floats": array([2, 2, 3], [1.0] * 12),
    "text-values": array([2, 2, 3], ["1"] * 12),
    "null-values": array([2, 2, 3], [None] * 12),
    "one-null": array([2, 2, 3], [*PIXELS[:-1], None]),
    "nested-otherwise": array([2, 2, 3], [[[1, 2, 3, 4]] * 3]),
    "nested-unevenly": array([2, 2, 3], [[[1, 2, 3]] * 2, [1, 2, 3]]),
    "object-values": array([2, 2, 3], [{}] * 12),
    "data-object": array([2, 2, 3], {"0": 1}),
    "data-text": array([2, 2, 3], "000000000000"),
    "data-number": array([2, 2, 3], 7),
    "data-null": array([2, 2, 3], None),
    "FP32": array([2, 2, 3], [0.5] * 12, "FP32"),
    "FP16": array([2, 2, 3], [0.5] * 12, "FP16"),
    "FP64": array([2, 2, 3], [0.5] * 12, "FP64"),
    "BOOL": array([2, 2, 3], [True] * 12, "BOOL"),
    "STRING": array([1], ["x"], "STRING"),
    "uint8-in-small": array([2, 2, 3], PIXELS, "uint8"),
    "datatype-null": array([2, 2, 3], PIXELS, None),
    "datatype-number": array([2, 2, 3], PIXELS, 8),
    "bytes-none": body(tensor([], [0])),
    "bytes-too-few": body(tensor([text(GOOD)], [2])),
    "bytes-too-many": body(tensor([text(GOOD)] * 2, [1])),
    "bytes-wide": body(tensor([text(GOOD)] * 2, [1, 2])),
    "bytes-3-dimensions": body(tensor([text(GOOD)], [1, 1, 1])),
    "bytes-negative": body(tensor([text(GOOD)], [-1])),
    "bytes-of-numbers": body(tensor([1, 2, 3])),
    "bytes-of-null": body(tensor([None])),
    "bytes-nested": body(tensor([[text(GOOD)]])),
    "bytes-text": body(tensor(text(GOOD), [1])),
    "one-of-two-damaged": body(tensor([text(GOOD), text(GOOD[:90])])),
    "base64-invalid": body(tensor(["!!!!"])),
    "base64-too-short": body(tensor(["A"])),
    "base64-of-the-url-kind": body(tensor(["-_-_"])),
    "base64-beyond-ascii": body(tensor(["日本語"])),
    "base64-empty": body(tensor([""])),
    "data-url-of-nothing": body(tensor(["data:image/png;base64,"])),
    "data-url-without-base64": body(tensor(["data:image/png," + text(GOOD)])),
    "too-many-images": body(tensor([text(GOOD)] * 65)),
    "unknown-output": body(tensor(GOOD), outputs=[{"name": "boxes"}]),
    "one-unknown-output": body(tensor(GOOD), outputs=[{"name": "labels"}, {"name": "x" * 9999}]),
    "outputs-of-text": body(tensor(GOOD), outputs=["labels"]),
    "outputs-object": body(tensor(GOOD), outputs={"name": "labels"}),
    "parameters-list": body(tensor(GOOD), parameters=[]),
    "content-type-number": body(tensor(GOOD, parameters={"content_type": 5})),
    "id-number": body(tensor(GOOD), id=5),
    "id-object": body(tensor(GOOD), id={}),
    "id-with-a-line-break": body(tensor(GOOD), id="a\r\nSet-Cookie: b=c"),
    "id-with-zero": body(tensor(GOOD), id="a\x00b"),
    "id-beyond-ascii": body(tensor(GOOD), id="ключ"),
    "id-long": body(tensor(GOOD), id="x" * 257),
    **{
        f"top-k-{k!r}": body(tensor(GOOD), parameters={"top_k": k})
        for k in (
            0,
            -1,
            1001,
            10**9,
            2**70,
            True,
            False,
            "x",
            "",
            "-1",
            "١" * 20,
            2.5,
            1e300,
            [3],
            {},
        )
    },
    "a-list": [],
    "a-number": 7,
    "a-text": "payload",
    "a-null": None,
}


@pytest.mark.parametrize("request_body", BODIES.values(), ids=BODIES.keys())
def test_invalid_request(app: App, request_body: Any) -> None:
    assert_refused(infer(app, json.dumps(request_body).encode(), headers=JSON))


BROKEN = {
    "no-body": b"",
    "words": b"hello",
    "cut": json.dumps(body(tensor(GOOD))).encode()[:-2],
    "two": b"{}{}",
    "not-utf-8": b'{"inputs": "\xff\xfe"}',
    "half-a-surrogate": b'{"inputs": "\\ud800"}',
    "not-a-number": b'{"inputs": [NaN, Infinity]}',
    "deep": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "zero-bytes": bytes(1000),
    "image": GOOD,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_invalid_json(app: App, data: bytes) -> None:
    assert_refused(infer(app, data, headers=JSON))


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "image/png", "nonsense"]
)
def test_unsupported_content_type(app: App, content_type: str) -> None:
    data = json.dumps(body(tensor(GOOD))).encode()
    error = assert_refused(infer(app, data, headers={"Content-Type": content_type}))
    assert "application/json" in error


def test_the_error_names_the_accepted_arrays(app: App) -> None:
    for request in (array([12]), array([2, 3, 2]), array([2, 2, 3], [0.5] * 12, "FP32")):
        error = assert_refused(infer(app, request))
        assert "[H,W,C]" in error and "BYTES" in error


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (array([3, 2, 2]), "transpose it to [H,W,C]"),
        (array([1, 3, 2, 2]), "transpose it to [H,W,C]"),
        (array([2, 2, 3], [0.5] * 12, "FP32"), "multiply values from 0 to 1 by 255"),
        (array([2, 2, 3], [200.0] * 12, "FP64"), "send them as UINT8"),
    ],
)
def test_the_error_says_what_to_do(app: App, request_: dict[str, Any], hint: str) -> None:
    assert hint in assert_refused(infer(app, request_))


def test_top_k_null_is_the_default(app: App) -> None:
    response = infer(app, body(tensor(GOOD), parameters={"top_k": None}))
    assert response.json()["outputs"][0]["shape"] == [1, 5]


ADDRESSES = [
    "https://bucket.example/cat.jpg?signature=" + "a" * 400,
    "www.example.com/cat",
    "example.com/cat.jpg?size=2",
    "C:\\pictures\\cat.jpg",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_error_says_that_addresses_are_not_fetched(app: App, address: str) -> None:
    for response in (
        infer(app, body(tensor([address]))),
        classify(app, json.dumps({"inputs": address}).encode(), headers=JSON),
        classify(app, address.encode()),
    ):
        assert "othing is fetched" in assert_refused(response)
