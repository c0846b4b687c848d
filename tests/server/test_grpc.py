"""gRPC answers batches in order, and streams until a refusal."""

import grpc
import numpy as np
import pytest

from tests.support.answers import files
from tests.support.app import App
from tests.support.clients import COFFEE, assert_sentence, message, stub
from tests.support.timm_reference import TOLERANCE, timm_reference


def test_batch_with_top_k_and_outputs(app: App) -> None:
    several, images = zip(*files().values(), strict=True)
    shape, options = [len(several)], {"top_k": 3}
    request = message(shape, bytes_contents=several, params=options, outputs=("scores",))
    (scores,) = stub(app).ModelInfer(request, timeout=60).outputs
    assert (scores.name, list(scores.shape)) == ("scores", [len(several), 3])
    rows = np.reshape(scores.contents.fp32_contents, (-1, 3))
    for image, row in zip(images, rows, strict=True):
        expected = timm_reference().ranking(image, 3)[1]
        np.testing.assert_allclose(row, expected, rtol=0, atol=TOLERANCE)


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
