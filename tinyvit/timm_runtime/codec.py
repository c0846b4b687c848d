"""The Open Inference Protocol's side: requests to images still undecoded, scores to responses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.types import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    ResponseOutput,
)

from .engines.base import EMBEDDING, LOGITS, PROBABILITIES
from .errors import InvalidRequest
from .images import FORMATS, EncodedImage, ImageSource, PixelImage, check_size

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


class Served(Protocol):
    """What the codec has to know of the model that answers."""

    @property
    def labels(self) -> Sequence[str]:
        """One a class."""
        ...

    @property
    def max_pixels(self) -> int:
        """Of the largest image accepted."""
        ...

    @property
    def network_outputs(self) -> frozenset[str]:
        """Which outputs the network has."""
        ...


@dataclass(frozen=True)
class ClassificationRequest:
    """What a request asks for."""

    images: Sequence[ImageSource]
    top_k: int
    outputs: tuple[str, ...]
    """Names of the protocol's outputs, in the order of the answer."""

    @property
    def network_outputs(self) -> frozenset[str]:
        """Which of the network's outputs the answer is made from."""
        needed = {LABELS: PROBABILITIES, SCORES: PROBABILITIES}
        return frozenset(needed.get(name, name) for name in self.outputs)


def decode_request(request: InferenceRequest, served: Served) -> ClassificationRequest:
    """Checks everything that can be told without decoding an image; raises InvalidRequest or
    InvalidImage."""
    if request.id and not (
        len(request.id) <= MAX_ID and request.id.isascii() and request.id.isprintable()
    ):
        raise InvalidRequest(f"The 'id' must be at most {MAX_ID} printable ASCII characters.")
    parameters = request.parameters.model_dump() if request.parameters else {}
    return ClassificationRequest(
        images=_images(_payload(request.inputs), served.max_pixels),
        top_k=check_top_k(parameters.get("top_k"), len(served.labels)),
        outputs=_outputs(request, served),
    )


def check_top_k(top_k: Any, classes: int) -> int:
    """`top_k`, also as text, or the default for None; raises InvalidRequest unless it is a whole
    number and 1 ≤ top_k ≤ classes."""
    if top_k is None:
        return min(DEFAULT_TOP_K, classes)
    if isinstance(top_k, str) and top_k.isdecimal() and len(top_k) < 10:
        top_k = int(top_k)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= classes:
        raise InvalidRequest(f"'top_k' must be a whole number from 1 to {classes}.")
    return top_k


def _payload(inputs: list[RequestInput]) -> RequestInput:
    names = [tensor.name for tensor in inputs]
    if names != [INPUT]:
        got = ", ".join(repr(name[:40]) for name in names[:5]) or "none"
        raise InvalidRequest(f"The model takes exactly one input, '{INPUT}'; it got {got}.")
    return inputs[0]


def _outputs(request: InferenceRequest, served: Served) -> tuple[str, ...]:
    known = [LABELS, SCORES, *sorted(served.network_outputs & {LOGITS, EMBEDDING})]
    names = tuple(dict.fromkeys(output.name for output in request.outputs or ()))
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"There is no output '{name[:40]}'; the outputs are "
                f"{', '.join(map(repr, known[:-1]))} and {known[-1]!r}."
            )
    return names or (LABELS, SCORES)


def _images(tensor: RequestInput, max_pixels: int) -> Sequence[ImageSource]:
    datatype = getattr(tensor.datatype, "value", tensor.datatype)
    data = getattr(tensor.data, "root", tensor.data)
    if not isinstance(data, list):
        raise InvalidRequest(f"The data of '{INPUT}' must be a flat list; {ACCEPTED}.")
    if datatype == Datatype.BYTES.value:
        return _encoded(tensor, data, max_pixels)
    if datatype in INTEGERS:
        return _pixels(tensor, data, max_pixels)
    raise InvalidRequest(f"The datatype {str(datatype)[:20]} makes no image; {ACCEPTED}.")


def _encoded(tensor: RequestInput, data: list[Any], max_pixels: int) -> Sequence[ImageSource]:
    """JSON brings text, which is base64; gRPC brings the bytes themselves."""
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or shape[0] < 1:
        raise InvalidRequest(f"The shape {_short(shape)} does not fit BYTES; {ACCEPTED}.")
    if len(data) != shape[0]:
        raise InvalidRequest(
            f"The shape {_short(shape)} does not fit {len(data)} elements of data."
        )
    if not all(isinstance(element, (str, bytes)) for element in data):
        raise InvalidRequest("Each encoded image must be a base64 string (in gRPC: bytes).")
    as_base64 = tensor.parameters is not None and tensor.parameters.content_type == "base64"
    return [EncodedImage(element, max_pixels, as_base64) for element in data]


def _pixels(tensor: RequestInput, data: list[Any], max_pixels: int) -> Sequence[ImageSource]:
    shape = tensor.shape
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4) or min(shape) < 1:
        raise InvalidRequest(f"The shape {_short(shape)} is not that of an image; {ACCEPTED}.")
    count, height, width, channels = [1, *shape][-4:]
    check_size(width, height, max_pixels)
    if len(data) != math.prod(shape):
        raise InvalidRequest(
            f"The shape {_short(shape)} needs {math.prod(shape)} values; the data has {len(data)}."
        )
    size = height * width * channels
    return [PixelImage(data, i * size, height, width, channels) for i in range(count)]


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


def encode_response(
    request: ClassificationRequest,
    results: Mapping[str, np.ndarray],
    labels: Sequence[str],
    model_name: str,
    model_version: str | None,
) -> InferenceResponse:
    """The outputs asked for, from the network's `results`, each `[N,...]`."""
    return InferenceResponse(
        model_name=model_name,
        model_version=model_version,
        outputs=[_encode(name, request, results, labels) for name in request.outputs],
    )


def _encode(
    name: str,
    request: ClassificationRequest,
    results: Mapping[str, np.ndarray],
    labels: Sequence[str],
) -> ResponseOutput:
    if name in (LOGITS, EMBEDDING):
        return NumpyCodec.encode_output(name, results[name])
    probabilities = results[PROBABILITIES]
    best = top(probabilities, request.top_k)
    if name == SCORES:
        return NumpyCodec.encode_output(SCORES, np.take_along_axis(probabilities, best, axis=1))
    return ResponseOutput(
        name=LABELS,
        datatype=Datatype.BYTES,
        shape=list(best.shape),
        data=[labels[i].encode() for i in best.flat],
        parameters=Parameters(content_type="str"),
    )


def file_request(file: bytes, top_k: str | None) -> InferenceRequest:
    """A request for one image file, as gRPC brings it."""
    return InferenceRequest(
        inputs=[RequestInput(name=INPUT, shape=[1], datatype=Datatype.BYTES, data=[file])],
        parameters=None if top_k is None else Parameters(top_k=top_k),
    )


def ranking(response: InferenceResponse) -> list[dict[str, Any]]:
    """Labels and scores of a response for one image, as Hugging Face's image classification has
    them: `[{"label": ..., "score": ...}, ...]`, best first."""
    labels, scores = (output.data.root for output in response.outputs)
    return [
        {"label": label.decode(), "score": score}
        for label, score in zip(labels, scores, strict=True)
    ]
