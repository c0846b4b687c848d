"""Generated requests are answered or refused, as OpenAPI describes them."""

import json
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given, settings, strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from client.local import LocalServer
from tests.support.app import App
from tests.support.clients import (
    image_file,
    infer,
    tensor,
    text,
)
from tests.support.mutations import assert_answered
from tests.support.refusals import JSON

PIXEL = tensor([1, 2, 3], [1, 1, 3], "UINT8")
SMALL = image_file("PNG", (8, 8))
PARAMETERS = ["top_k", "content_type", "headers", "self", "root"]

scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def nearly(*valid: Any) -> st.SearchStrategy[Any]:
    """Return mostly one of the valid values."""
    fitting = st.sampled_from(valid)
    return st.one_of(fitting, fitting, fitting, anything)


json_tensors = st.fixed_dictionaries(
    {
        "name": nearly("payload"),
        "shape": nearly([1, 1, 3], [1], [1, 1], [0], [-1, 2**31, 2**63], [2**64]),
        "datatype": nearly("UINT8", "BYTES", "INT64", "FP32", "BOOL"),
        "data": nearly([1, 2, 3], [text(SMALL)], [-10, 300], [1] * 12, ["x", "y"]),
    },
    optional={"parameters": nearly({}, {"content_type": "base64"}, {"content_type": "np"})},
)
json_requests = st.fixed_dictionaries(
    {"inputs": st.lists(json_tensors, max_size=2) | st.just([PIXEL]) | anything},
    optional={
        "id": nearly("42", None),
        "outputs": nearly([{"name": "labels"}], [{"name": "scores"}], []),
        "parameters": nearly({}, {"top_k": 3})
        | st.dictionaries(st.sampled_from(PARAMETERS), anything),
        "extra": anything,
    },
)


@given(json_requests)
def test_nearly_valid_requests(app: App, request: Any) -> None:
    assert_answered(infer(app, json.dumps(request).encode(), headers=JSON))


@pytest.mark.slow
def test_described_requests(server: LocalServer) -> None:
    """schemathesis tries every operation of the OpenAPI document."""
    address = f"{server.url}/v2/models/tinyvit/docs/dataplane.json"
    schema = schemathesis.openapi.from_dict(requests.get(address, timeout=60).json())
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 14, [operation.label for operation in operations]
    for operation in operations:

        @settings(max_examples=25)
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
