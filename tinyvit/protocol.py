"""The Open Inference Protocol's side: requests to images still undecoded, scores to responses."""

import base64
import binascii
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError
from mlserver.types import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    ResponseOutput,
)
from PIL import Image

from images import FORMATS, check_size, from_array, open_image

INPUT, LABELS, SCORES = "payload", "labels", "scores"
DEFAULT_TOP_K = 5
FEW = 32
"""Labels up to which one maximum after the other is the fastest way to find them."""

MAX_ID = 256
"""Characters; MLServer repeats the id in response headers, where it would be an injection."""

INTEGERS = frozenset(d.value for d in Datatype if "INT" in d.value)
ACCEPTED = (
    f"'{INPUT}' takes pixels, an integer array [H,W,C] or [N,H,W,C] of values from 0 to 255 with C "
    f"1, 3 or 4, or encoded images, BYTES [N] or [N,1] ({', '.join(FORMATS)})"
)

Picture = Callable[[], Image.Image]
"""Opens one image of a request; costly or failing work is left to the call."""


class RequestError(MLServerError):
    """The request is not one that this model can answer."""


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    pictures: Sequence[Picture]
    top_k: int
    outputs: tuple[str, ...]


def read_request(request: InferenceRequest, classes: int, max_pixels: int) -> Query:
    """Checks everything that can be told without decoding; raises RequestError, ImageError."""
    if request.id and not (
        len(request.id) <= MAX_ID and request.id.isascii() and request.id.isprintable()
    ):
        raise RequestError(f"The 'id' must be at most {MAX_ID} printable ASCII characters.")
    parameters = request.parameters.model_dump() if request.parameters else {}
    return Query(
        pictures=_pictures(_payload(request.inputs), max_pixels),
        top_k=check_top_k(parameters.get("top_k"), classes),
        outputs=_outputs(request),
    )


def check_top_k(top_k: Any, classes: int) -> int:
    """`top_k`, also as text, or the default for None; raises RequestError unless it is a whole
    number and 1 ≤ top_k ≤ classes."""
    if top_k is None:
        return min(DEFAULT_TOP_K, classes)
    if isinstance(top_k, str) and top_k.isdecimal() and len(top_k) < 10:
        top_k = int(top_k)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= classes:
        raise RequestError(f"'top_k' must be a whole number from 1 to {classes}.")
    return top_k


def _payload(inputs: list[RequestInput]) -> RequestInput:
    names = [tensor.name for tensor in inputs]
    if names != [INPUT]:
        got = ", ".join(repr(name[:40]) for name in names[:5]) or "none"
        raise RequestError(f"The model takes exactly one input, '{INPUT}'; it got {got}.")
    return inputs[0]


def _outputs(request: InferenceRequest) -> tuple[str, ...]:
    names = tuple(output.name for output in request.outputs or ())
    for name in names:
        if name not in (LABELS, SCORES):
            raise RequestError(
                f"There is no output '{name[:40]}'; the outputs are '{LABELS}' and '{SCORES}'."
            )
    return tuple(dict.fromkeys(names)) or (LABELS, SCORES)


def _pictures(tensor: RequestInput, max_pixels: int) -> Sequence[Picture]:
    datatype = getattr(tensor.datatype, "value", tensor.datatype)
    data = getattr(tensor.data, "root", tensor.data)
    if not isinstance(data, list):
        raise RequestError(f"The data of '{INPUT}' must be a flat list; {ACCEPTED}.")
    if datatype == Datatype.BYTES.value:
        return _encoded(tensor, data, max_pixels)
    if datatype in INTEGERS:
        return _pixels(tensor, data, max_pixels)
    raise RequestError(f"The datatype {str(datatype)[:20]} makes no image; {ACCEPTED}.")


def _encoded(tensor: RequestInput, data: list[Any], max_pixels: int) -> Sequence[Picture]:
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or shape[0] < 1:
        raise RequestError(f"The shape {_short(shape)} does not fit BYTES; {ACCEPTED}.")
    if len(data) != shape[0]:
        raise RequestError(f"The shape {_short(shape)} does not fit {len(data)} elements of data.")
    as_base64 = tensor.parameters is not None and tensor.parameters.content_type == "base64"
    return [_opener(element, as_base64, max_pixels) for element in data]


def _opener(element: Any, as_base64: bool, max_pixels: int) -> Picture:
    """JSON brings text, which is base64; gRPC brings the bytes themselves."""
    if not isinstance(element, (str, bytes)):
        raise RequestError("Each encoded image must be a base64 string (in gRPC: bytes).")
    if isinstance(element, bytes) and not as_base64:
        return lambda: open_image(element, max_pixels)

    def open_base64() -> Image.Image:
        try:
            return open_image(base64.b64decode(element, validate=True), max_pixels)
        except (binascii.Error, ValueError):
            raise RequestError(
                "The image is not valid base64 (standard alphabet, padded, without line breaks)."
            ) from None

    return open_base64


def _pixels(tensor: RequestInput, data: list[Any], max_pixels: int) -> Sequence[Picture]:
    shape = tensor.shape
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4) or min(shape) < 1:
        raise RequestError(f"The shape {_short(shape)} is not that of an image; {ACCEPTED}.")
    count, height, width, channels = [1, *shape][-4:]
    check_size(width, height, max_pixels)
    if len(data) != math.prod(shape):
        raise RequestError(
            f"The shape {_short(shape)} needs {math.prod(shape)} values; the data has {len(data)}."
        )
    each = height * width * channels

    def opener(index: int) -> Picture:
        return lambda: from_array(
            _uint8(data[index * each : (index + 1) * each] if count > 1 else data).reshape(
                height, width, channels
            )
        )

    return [opener(i) for i in range(count)]


def _uint8(values: list[Any]) -> np.ndarray:
    try:
        return np.frombuffer(bytearray(values), np.uint8)  # twice as fast as by way of bytes
    except (TypeError, ValueError):
        raise RequestError(
            f"The data of '{INPUT}' must be whole numbers from 0 to 255 in one flat list."
        ) from None


def _short(shape: Sequence[int]) -> str:
    text = ",".join(str(size) for size in shape[:6])
    return f"[{text}{',...' if len(shape) > 6 else ''}]"[:80]


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices `[N,k]` of the k largest of each row of `[N,classes]`, best first; of equals, the
    first."""
    return np.stack([_top(row, k) for row in scores])


def _top(row: np.ndarray, k: int) -> np.ndarray:
    if k > FEW:
        candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
        return candidates[np.argsort(-row[candidates], kind="stable")[:k]]
    rest, best = row.copy(), np.empty(k, np.intp)
    for place in range(k):  # a tenth of what numpy's partition takes for 5 of 21841
        best[place] = rest.argmax()
        rest[best[place]] = -np.inf
    return best


def build_response(
    query: Query, scores: np.ndarray, labels: Sequence[str], model_name: str, version: str | None
) -> InferenceResponse:
    """Top-k labels and scores of probabilities `[N,classes]`, in the outputs asked for."""
    best = top(scores, query.top_k)
    encode = {
        LABELS: lambda: ResponseOutput(
            name=LABELS,
            datatype=Datatype.BYTES,
            shape=list(best.shape),
            data=[labels[i].encode() for i in best.flat],
            parameters=Parameters(content_type="str"),
        ),
        SCORES: lambda: NumpyCodec.encode_output(SCORES, np.take_along_axis(scores, best, axis=1)),
    }
    return InferenceResponse(
        model_name=model_name,
        model_version=version,
        outputs=[encode[name]() for name in query.outputs],
    )


def ranking(scores: np.ndarray, k: int, labels: Sequence[str]) -> list[dict[str, str | float]]:
    """The k best of one row `[1,classes]`, as Hugging Face's image classification answers."""
    return [{"label": labels[i], "score": float(scores[0, i])} for i in top(scores, k)[0]]
