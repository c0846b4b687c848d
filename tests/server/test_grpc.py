"""gRPC gives the same answers as REST, from contents and from raw bytes, alone and in streams."""

from typing import Any

import grpc
import numpy as np
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from tests.support.answers import answers, files, photo, pixels, shows
from tests.support.app import App
from tests.support.binary_tensors import elements
from tests.support.clients import COFFEE, assert_sentence, body, message, stub, tensor
from tests.support.timm_reference import TOLERANCE, truth

FIELDS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}


def ranking(response: pb.ModelInferResponse) -> tuple[list[str], list[float]]:
    """Return labels and scores; a response is raw if the request was."""
    labels, scores = response.outputs
    assert labels.shape == scores.shape
    if not response.raw_output_contents:
        strings = [label.decode() for label in labels.contents.bytes_contents]
        return strings, list(scores.contents.fp32_contents)
    packed, numbers = response.raw_output_contents
    strings = []
    while packed:
        end = 4 + int.from_bytes(packed[:4], "little")
        strings.append(packed[4:end].decode())
        packed = packed[end:]
    return strings, np.frombuffer(numbers, np.float32).tolist()


def assert_equals_rest(app: App, tensor: Any, *requests: pb.ModelInferRequest) -> None:
    ((expected_labels, expected_scores),) = answers(app, body(tensor))
    for request in requests:
        labels, scores = ranking(stub(app).ModelInfer(request, timeout=60))
        assert labels == expected_labels
        assert scores == pytest.approx(expected_scores, abs=1e-6)


@pytest.mark.parametrize("datatype", FIELDS)
def test_pixels(app: App, datatype: str) -> None:
    array = photo(70, 50)
    shape, raw = list(array.shape), array.astype(datatype.lower()).tobytes()
    contents = {FIELDS[datatype]: array.ravel().tolist()}
    requests = message(shape, datatype, **contents), message(shape, datatype, raw=[raw])
    assert_equals_rest(app, pixels(array), *requests)


@pytest.mark.parametrize("kind", ["JPEG cat", "PNG RGBA", "WebP lossy", "GIF animated"])
def test_files(app: App, kind: str) -> None:
    file = files()[kind][0]
    requests = message(bytes_contents=[file]), message(raw=[elements(file)])
    assert_equals_rest(app, tensor(file), *requests)


def test_batch_with_top_k_and_outputs(app: App) -> None:
    everything = [file for file, _ in files().values()]
    shape, options = [len(everything)], {"top_k": 3}
    request = message(shape, bytes_contents=everything, asked=options, outputs=("scores",))
    (scores,) = stub(app).ModelInfer(request, timeout=60).outputs
    assert (scores.name, list(scores.shape)) == ("scores", [len(everything), 3])
    rows = np.reshape(scores.contents.fp32_contents, (-1, 3))
    for kind, row in zip(files(), rows, strict=True):
        np.testing.assert_allclose(row, truth().ranking(shows(kind), 3)[1], rtol=0, atol=TOLERANCE)


def test_stream_answers_in_order_until_a_refusal(app: App) -> None:
    coffee = message(bytes_contents=[COFFEE.read_bytes()])
    grey = message([1, 1, 1], "UINT8", uint_contents=[128])
    stream = stub(app).ModelStreamInfer
    expected = [stub(app).ModelInfer(r, timeout=60).outputs for r in (coffee, grey, coffee)]
    assert [r.outputs for r in stream(iter([coffee, grey, coffee]), timeout=60)] == expected
    with pytest.raises(grpc.RpcError) as failure:
        for response in stream(iter([coffee, message([12], "UINT8"), coffee]), timeout=60):
            assert response.outputs == expected[0]
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(failure.value.details())
