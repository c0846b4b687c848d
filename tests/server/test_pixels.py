"""Arrays of pixels get the answers that timm gives for the same image."""

import numpy as np
import pytest
from mlserver.codecs import NumpyCodec
from PIL import Image

from tests.support.answers import assert_timms_answers, photo, pixels
from tests.support.app import App
from tests.support.clients import body

SIZES = [(451, 300), (1, 1), (2, 3), (8, 500)]
INTEGERS = ["INT8", "INT64", "UINT16"]


@pytest.mark.parametrize("size", SIZES)
def test_an_array_gets_timms_answer(app: App, size: tuple[int, int]) -> None:
    array = photo(*size)
    assert_timms_answers(app, body(pixels(array)), Image.fromarray(array))
    assert_timms_answers(app, body(pixels(array[None])), Image.fromarray(array))


@pytest.mark.parametrize("count", [2, 9])
def test_a_batch_gets_timms_answers(app: App, count: int) -> None:
    """Nine images are more than one batch of the engine."""
    arrays = np.stack([np.roll(photo(70, 50), 7 * i, axis=1) for i in range(count)])
    assert_timms_answers(app, body(pixels(arrays)), *map(Image.fromarray, arrays))


def test_grey_array(app: App) -> None:
    grey = photo(70, 50)[:, :, :1]
    image = Image.fromarray(grey.repeat(3, axis=2))
    assert_timms_answers(app, body(pixels(grey)), image)
    assert_timms_answers(app, body(pixels(grey[:, :, 0])), image)
    assert_timms_answers(app, body(pixels(np.stack([grey] * 2))), image, image)


def test_transparent_pixels_become_white(app: App) -> None:
    color = photo(70, 50)
    alpha = np.where(np.arange(70) % 20 < 10, 255, 0)[None, :, None].repeat(50, axis=0)
    expected = Image.fromarray(np.where(alpha, color, 255).astype(np.uint8))
    rgba = np.concatenate([color, alpha.astype(np.uint8)], axis=2)
    assert_timms_answers(app, body(pixels(rgba)), expected)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integer_type(app: App, datatype: str) -> None:
    array = photo(70, 50) // (2 if datatype == "INT8" else 1)
    assert_timms_answers(app, body(pixels(array, datatype)), Image.fromarray(array))


def test_numpy_codec(app: App) -> None:
    """MLServer's own codec encodes the array, content type included."""
    array = photo(70, 50)
    payload = NumpyCodec.encode_input("payload", array).model_dump(exclude_none=True, mode="json")
    assert payload["datatype"] == "UINT8"
    assert_timms_answers(app, {"inputs": [payload]}, Image.fromarray(array))
