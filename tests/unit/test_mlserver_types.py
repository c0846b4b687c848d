"""Requests in MLServer's types, which a server without this package's own classes passes on."""

from typing import Any

import numpy as np
import pytest
from mlserver.types import InferenceRequest, RequestInput

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.mlserver_types import from_inference_request


def request_of(data: Any) -> InferenceRequest:
    tensor = RequestInput(name="payload", shape=[2, 2, 3], datatype="UINT8", data=data)
    return InferenceRequest(inputs=[tensor])


def test_pixels() -> None:
    (tensor,) = from_inference_request(request_of(list(range(12)))).inputs
    np.testing.assert_array_equal(tensor.data, np.arange(12, dtype=np.uint8))


@pytest.mark.parametrize("data", [12, 10**12, True, [True] * 12, [1.0] * 12, [256] * 12, "x" * 12])
def test_other_data_is_refused(data: Any) -> None:
    """Python would make an array of zeros from a number, in as much memory as it says."""
    with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
        from_inference_request(request_of(data))
