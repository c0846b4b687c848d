"""Tensors in bytes, little-endian: the binary tensor data extension, and gRPC's contents."""

import math
import struct
from collections.abc import Sequence

import numpy as np

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.request import BYTES, INTEGERS, TensorData, short_shape

MAX_ELEMENTS = 10_000
"""Maximum number of elements of a BYTES tensor; `max_queue` accepts far fewer images."""

DTYPES = {datatype: np.dtype(datatype.lower()).newbyteorder("<") for datatype in INTEGERS}

VARINT_SLICE = 2**20
"""Bytes of varints that are read at once; the temporary arrays take three times as many."""

NOT_PIXELS = "Pixels must be whole numbers from 0 to 255."


def read_tensor(content: memoryview, datatype: str, shape: Sequence[int]) -> TensorData:
    """Return the data of a tensor: pixels as a flat uint8 array, which shares the memory where they
    were sent as UINT8; the elements of BYTES; nothing for other types, which are refused later.

    Raises InvalidRequest where the bytes do not make up the tensor.
    """
    if datatype == BYTES:
        return _elements(content)
    if datatype in INTEGERS:
        return _pixels(content, DTYPES[datatype], shape)
    return []


def write_elements(elements: Sequence[bytes]) -> bytes:
    """Return a BYTES tensor: the length of each element in 4 bytes, and the element."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def _pixels(content: memoryview, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(content) != size:
        raise InvalidRequest(
            f"The shape {short_shape(shape)} needs {str(size)[:40]} bytes of {dtype.name.upper()}; "
            f"the binary data has {len(content)}."
        )
    values = np.frombuffer(content, dtype)
    if dtype != np.uint8:
        if values.size and (values.min() < 0 or values.max() > 255):
            raise InvalidRequest(NOT_PIXELS)
        values = values.astype(np.uint8)
    return values


def _elements(content: memoryview) -> list[bytes]:
    start, end, elements = 0, len(content), list[bytes]()
    while start < end:
        if len(elements) == MAX_ELEMENTS:
            raise InvalidRequest(
                f"The tensor has more than {MAX_ELEMENTS} elements of BYTES: send fewer images in "
                f"a request."
            )
        if end - start >= 4:
            (size,) = struct.unpack_from("<I", content, start)
        if end - start < 4 or size > end - start - 4:
            raise InvalidRequest(
                f"The binary data of BYTES ends within element {len(elements)}: each element is "
                f"its length in 4 bytes, little-endian, and its bytes."
            )
        elements.append(bytes(content[start + 4 : start + 4 + size]))
        start += 4 + size
    return elements


def read_varints(content: bytes | memoryview) -> np.ndarray:
    """Return the numbers of a packed list of protobuf as flat uint8; raises InvalidRequest for one
    that is not from 0 to 255.

    Up to 127 a number is its byte; up to 255 it is its byte and a 1 (the lower 7 bits with a mark,
    and the eighth).
    """
    array, parts, start = np.frombuffer(content, np.uint8), [], 0
    while start < len(array):
        end = start + VARINT_SLICE
        end += int(array[end - 1] > 127) if end < len(array) else 0
        parts.append(_one_byte_each(array[start:end]))
        start = end
    return np.concatenate(parts) if parts else array


def _one_byte_each(varints: np.ndarray) -> np.ndarray:
    is_second = np.zeros(len(varints), bool)
    np.greater(varints[:-1], 127, out=is_second[1:])
    if varints[-1] > 127 or (varints[is_second] != 1).any():
        raise InvalidRequest(NOT_PIXELS)
    return varints[~is_second]
