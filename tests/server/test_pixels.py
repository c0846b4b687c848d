"""Arrays of pixels get the answers that timm gives for the same image."""

import numpy as np
import pytest
from mlserver.codecs import NumpyCodec
from PIL import Image

from tests.support.answers import assert_timms_answers, photo, pixels
from tests.support.app import App
from tests.support.clients import body


@pytest.mark.parametrize("size", [(451, 300), (1, 1), (2, 3), (8, 500)])
def test_an_array_gets_timms_answer(app: App, size: tuple[int, int]) -> None:
    array = photo(*size)
    assert_timms_answers(app, body(pixels(array)), Image.fromarray(array))
    assert_timms_answers(app, body(pixels(array[None])), Image.fromarray(array))


@pytest.mark.parametrize("count", [2, 9])
def test_a_batch_gets_timms_answers(app: App, count: int) -> None:
    """Nine images are more than one batch of the engine."""
    arrays = np.stack([np.roll(photo(70, 50), 7 * i, axis=1) for i in range(count)])
    assert_timms_answers(app, body(pixels(arrays)), *map(Image.fromarray, arrays))


def test_numpy_codec(app: App) -> None:
    """MLServer's own codec encodes the array, content type included."""
    array = photo(70, 50)
    payload = NumpyCodec.encode_input("payload", array).model_dump(exclude_none=True, mode="json")
    assert payload["datatype"] == "UINT8"
    assert_timms_answers(app, {"inputs": [payload]}, Image.fromarray(array))
