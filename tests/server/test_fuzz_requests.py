"""Generated requests and messages, and everything that the OpenAPI document allows."""

import json
from typing import Any

import grpc
import pytest
import requests
import schemathesis
from hypothesis import given, settings, strategies as st
from mlserver.grpc import dataplane_pb2 as pb
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from client.local import LocalServer
from tests.support.app import App
from tests.support.clients import (
    assert_sane,
    assert_sentence,
    image_file,
    infer,
    stub,
    tensor,
    text,
)
from tests.support.mutations import QUIET, assert_answered

PIXEL = tensor([1, 2, 3], [1, 1, 3], "UINT8")
SMALL = image_file("PNG", (8, 8))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def nearly(*right: Any) -> st.SearchStrategy[Any]:
    """Return mostly one of the valid values."""
    fitting = st.sampled_from(right)
    return st.one_of(fitting, fitting, fitting, anything)


sizes = st.sampled_from([0, 1, 2, 3, 4, -1, 64, 2**31, 2**63, 2**64]) | st.integers()


tensors = st.fixed_dictionaries(
    {
        "name": nearly("payload"),
        "shape": st.one_of(nearly([1, 1, 3], [1], [1, 1]), st.lists(sizes, max_size=6)),
        "datatype": nearly("UINT8", "BYTES", "INT64", "FP32", "BOOL"),
        "data": st.one_of(
            nearly([1, 2, 3], [text(SMALL)]),
            st.lists(st.integers(-10, 300), max_size=12),
            st.lists(st.text(max_size=20), max_size=3),
        ),
    },
    optional={"parameters": nearly({}, {"content_type": "base64"}, {"content_type": "np"})},
)


nearly_valid_requests = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(tensors, max_size=2), st.just([PIXEL]), anything)},
    optional={
        "id": nearly("42", None),
        "outputs": nearly([{"name": "labels"}], [{"name": "scores"}], []),
        "parameters": nearly({}, {"top_k": 3})
        | st.dictionaries(
            st.sampled_from(["top_k", "content_type", "headers", "self", "root"]), anything
        ),
        "extra": anything,
    },
)


def test_nearly_valid_requests(app: App) -> None:
    @QUIET
    @given(nearly_valid_requests)
    def check(request: Any) -> None:
        data = json.dumps(request, ensure_ascii=True).encode()
        assert_answered(infer(app, data, headers={"Content-Type": "application/json"}))

    check()
    assert_sane(app)


def test_nearly_valid_messages(app: App) -> None:
    int64 = st.integers(-(2**63), 2**63 - 1)
    parameters = st.dictionaries(
        st.sampled_from(["top_k", "content_type", "headers", "x"]),
        st.one_of(
            st.builds(pb.InferParameter, int64_param=int64),
            st.builds(pb.InferParameter, string_param=st.text(max_size=9)),
            st.builds(pb.InferParameter, bool_param=st.booleans()),
            st.just(pb.InferParameter()),
        ),
        max_size=2,
    )
    contents = st.one_of(
        st.builds(
            pb.InferTensorContents, uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4)
        ),
        st.builds(pb.InferTensorContents, int64_contents=st.lists(int64, max_size=4)),
        st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=4)),
        st.builds(pb.InferTensorContents, bytes_contents=st.lists(st.binary(), max_size=2)),
        st.just(pb.InferTensorContents(bytes_contents=[SMALL])),
        st.just(pb.InferTensorContents(uint_contents=[1, 2, 3])),
    )
    inputs = st.builds(
        pb.ModelInferRequest.InferInputTensor,
        name=st.sampled_from(["payload", "payload", "payload", "", "x"]),
        datatype=st.sampled_from(["UINT8", "BYTES", "INT64", "FP32", "FP16", "", "x"]),
        shape=st.sampled_from([[1, 1, 3], [1]]) | st.lists(int64, max_size=5),
        contents=contents,
        parameters=parameters,
    )
    messages = st.builds(
        pb.ModelInferRequest,
        model_name=st.just("tinyvit"),
        id=st.text(max_size=4),
        inputs=st.lists(inputs, min_size=1, max_size=2),
        parameters=parameters,
        raw_input_contents=st.just([]) | st.lists(st.binary(max_size=12), max_size=2),
    )
    one = stub(app)
    refusals = (grpc.StatusCode.INVALID_ARGUMENT,)

    @QUIET
    @given(messages)
    def check(request: pb.ModelInferRequest) -> None:
        try:
            one.ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            assert error.code() in refusals, error.details()
            assert_sentence(error.details())

    check()
    assert_sane(app)


@pytest.mark.slow
def test_described_requests(server: LocalServer) -> None:
    """schemathesis tries every operation of the document."""
    address = f"{server.url}/v2/models/tinyvit/docs/dataplane.json"
    document = requests.get(address, timeout=60).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 14, [operation.label for operation in operations]
    for operation in operations:

        @settings(QUIET, max_examples=25)
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text
            if response.status_code == 404 and case.path.endswith("/ready"):
                return  # an unknown version, which the document does not describe
            checks = [status_code_conformance, response_schema_conformance]
            if "stream" not in case.path:  # described as JSON, and server-sent events
                checks.append(content_type_conformance)
            case.validate_response(response, checks=checks)

        check()
    assert_sane(server)
