"""Parameters of a request, wherever they stand: the nearest to the picture counts."""

import json
from typing import Any

import pytest
import requests

from client.local import LocalServer
from tests.support.clients import (
    COFFEE,
    assert_refused,
    body,
    classify,
    infer,
    message,
    stub,
    tensor,
    text,
)
from tests.support.refusals import GOOD, refused

FILE = COFFEE.read_bytes()


def count(answer: requests.Response) -> int:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["shape"][1]


@pytest.mark.parametrize("path", ["infer", "generate"])
def test_the_nearest_top_k_counts(either_server: LocalServer, path: str) -> None:
    url = f"{either_server.url}/v2/models/tinyvit/{path}"
    for query, request, own, expected in (
        (None, None, None, 5),
        (2, None, None, 2),
        (2, 3, None, 3),
        (2, 3, 4, 4),
        (None, 3, 4, 4),
        (2, None, 4, 4),
        (2, "3", None, 3),
    ):
        content = body(
            tensor(FILE, parameters={"top_k": own}), parameters={"top_k": request, "other": "x"}
        )
        answer = requests.post(url, params={"top_k": query}, json=content, timeout=60)
        assert count(answer) == expected


def test_the_nearest_top_k_counts_over_grpc(either_server: LocalServer) -> None:
    for request, own, expected in (
        ({}, {}, 5),
        ({"top_k": 3}, {}, 3),
        ({"top_k": 3}, {"top_k": 4}, 4),
    ):
        asked = message(bytes_contents=[FILE], asked=request, tensor_parameters=own)
        answer = stub(either_server).ModelInfer(asked, timeout=60)
        assert answer.outputs[0].shape[1] == expected


def test_function_to_apply_in_the_url(either_server: LocalServer) -> None:
    scores = infer(either_server, body(tensor(FILE)), params={"function_to_apply": "none"})
    assert scores.json()["outputs"][1]["data"][0] > 1  # a logit
    refusal = infer(either_server, body(tensor(FILE)), params={"function_to_apply": "tanh"})
    assert "softmax" in assert_refused(refusal)


@pytest.mark.parametrize("name", ["top_k", "topk", "function_to_apply"])
def test_beside_the_parameters(server: LocalServer, name: str) -> None:
    """In the place of in them, where nobody would look for it."""
    for answer in (
        infer(server, body(tensor(GOOD)) | {name: 1}),
        classify(server, json.dumps({"inputs": text(GOOD), name: 1}).encode()),
    ):
        assert f"'{name}'" in assert_refused(answer)


@pytest.mark.parametrize("name", ["topk", "k", "top-k", "topK", "TOP_K"])
def test_misspelt(either_server: LocalServer, name: str) -> None:
    wrong = {name: 3}
    for answer in (
        infer(either_server, body(tensor(GOOD), parameters=wrong)),
        infer(either_server, body(tensor(GOOD, parameters=wrong))),
        infer(either_server, body(tensor(GOOD)), params=wrong),
        classify(either_server, GOOD, params=wrong),
    ):
        assert f"'{name}'" in assert_refused(answer) and "'top_k'" in answer.json()["error"]
    assert "'top_k'" in refused(either_server, message(bytes_contents=[GOOD], asked=wrong))


@pytest.mark.parametrize(
    "name", ["temperature", "sequence_id", "_fields_set", "cls", "self", "model_config"]
)
def test_others_are_passed_over(either_server: LocalServer, name: str) -> None:
    content = body(tensor(GOOD, parameters={name: 1}), parameters={name: "x"})
    assert count(infer(either_server, content, params={name: "x"})) == 5


@pytest.mark.parametrize("value", [[1], {"a": 1}, list(range(2000))])
def test_values_are_scalars(either_server: LocalServer, value: Any) -> None:
    assert_refused(infer(either_server, body(tensor(GOOD), parameters={"other": value})))


def test_headers_are_not_to_be_forged(server: LocalServer) -> None:
    """MLServer puts the request's own in their place, and so it is here."""
    answer = infer(server, body(tensor(GOOD), parameters={"headers": {"x": "y"}}))
    assert count(answer) == 5
    assert "headers" not in answer.json()["parameters"]
