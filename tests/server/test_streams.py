"""Streams: as many answers as requests, and a refusal with its status."""

import json

import grpc
import pytest
import requests

from client.local import LocalServer
from tests.support.clients import (
    COFFEE,
    LABEL,
    assert_refused,
    assert_sentence,
    body,
    message,
    stub,
    tensor,
)
from tests.support.refusals import array


@pytest.mark.parametrize("route", ["infer_stream", "generate_stream"])
def test_stream_over_rest(sane_server: LocalServer, route: str) -> None:
    """A refusal has its status, because the stream starts with the first answer."""
    url = f"{sane_server.url}/v2/models/tinyvit/{route}"
    assert_refused(requests.post(url, json=array([12]), timeout=60))
    assert_refused(requests.post(url, json=body(tensor(b"hello")), timeout=60))
    unknown = requests.post(url.replace("tinyvit", "nobody"), json=array([12]), timeout=60)
    assert unknown.status_code == 404 and unknown.json()["error"]
    good = requests.post(url, json=body(tensor(COFFEE.read_bytes())), timeout=60)
    assert good.headers["content-type"].startswith("text/event-stream")
    events = [line for line in good.text.split("\n\n") if line]
    assert len(events) == 1
    assert json.loads(events[0].removeprefix("data: "))["outputs"][0]["data"][0] == LABEL


def test_stream_over_grpc(sane_server: LocalServer) -> None:
    """As many answers as requests, in their order; then the refusal."""
    coffee = message(bytes_contents=[COFFEE.read_bytes()])
    grey = message([1, 1, 1], "UINT8", uint_contents=[128])
    stream = stub(sane_server).ModelStreamInfer
    expected = [stub(sane_server).ModelInfer(r, timeout=60).outputs for r in (coffee, grey)]
    answers = list(stream(iter([coffee, grey, coffee]), timeout=60))
    assert [answer.outputs for answer in answers] == [*expected, expected[0]]
    with pytest.raises(grpc.RpcError) as failure:
        for answer in stream(iter([coffee, message([12], "UINT8"), coffee]), timeout=60):
            assert answer.outputs == expected[0]
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(failure.value.details())
