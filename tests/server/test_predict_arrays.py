"""Arrays of pixels are answered as timm answers the image they hold."""

import numpy as np
import pytest
from mlserver.codecs import NumpyCodec
from PIL import Image

from client.local import LocalServer
from tests.support.answers import assert_true, photo, pixels
from tests.support.clients import body


@pytest.mark.parametrize(
    "size", [(451, 300), (300, 451), (64, 64), (63, 65), (1, 1), (2, 3), (500, 8), (8, 500)]
)
def test_arrays(either_server: LocalServer, size: tuple[int, int]) -> None:
    array = photo(*size)
    picture = Image.fromarray(array)
    assert_true(either_server, body(pixels(array)), picture)
    assert_true(either_server, body(pixels(array[None])), picture)


@pytest.mark.parametrize("count", [2, 9])
def test_array_batches(either_server: LocalServer, count: int) -> None:
    """Also of more images than the engine's batch holds."""
    arrays = np.stack([np.roll(photo(70, 50), 7 * i, axis=1) for i in range(count)])
    assert_true(either_server, body(pixels(arrays)), *map(Image.fromarray, arrays))


def test_grey_arrays(either_server: LocalServer) -> None:
    grey = photo(70, 50)[:, :, :1]
    picture = Image.fromarray(grey.repeat(3, axis=2))
    assert_true(either_server, body(pixels(grey)), picture)
    assert_true(either_server, body(pixels(np.stack([grey] * 2))), picture, picture)


def test_arrays_with_alpha(either_server: LocalServer) -> None:
    """What is transparent is white."""
    colour = photo(70, 50)
    alpha = np.where(np.arange(70) % 20 < 10, 255, 0)[None, :, None].repeat(50, axis=0)
    expected = Image.fromarray(np.where(alpha, colour, 255).astype(np.uint8))
    request = body(pixels(np.concatenate([colour, alpha.astype(np.uint8)], axis=2)))
    assert_true(either_server, request, expected)


INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integer_types(either_server: LocalServer, datatype: str) -> None:
    """Whatever the type, values from 0 to 255 are a picture."""
    array = photo(70, 50) // (2 if datatype == "INT8" else 1)
    assert_true(either_server, body(pixels(array, datatype)), Image.fromarray(array))


def test_numpy_codec(either_server: LocalServer) -> None:
    """As MLServer's own codec encodes an array, content type included."""
    array = photo(70, 50)
    one = NumpyCodec.encode_input("payload", array).model_dump(exclude_none=True, mode="json")
    assert one["datatype"] == "UINT8"
    assert_true(either_server, {"inputs": [one]}, Image.fromarray(array))
