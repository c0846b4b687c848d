"""The Open Inference Protocol's request: what is asked about which images."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mlserver.types import Datatype, InferenceRequest, Parameters, RequestInput, TensorData

from mlserver_timm.checkpoints.network import EMBEDDING, LOGITS, PROBABILITIES
from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images.sources import FORMATS, EncodedImage, ImageSource, PixelArray
from mlserver_timm.protocol.base64_images import image_file

INPUT, LABELS, SCORES = "payload", "labels", "scores"

OPTIONAL_OUTPUTS = (LOGITS, EMBEDDING)
"""Outputs that a request has to name."""

TOP_K, FUNCTION = "top_k", "function_to_apply"
"""Parameters of a request or of its input; the input's counts where both are given."""

DEFAULT_TOP_K = 5

SOFTMAX = "softmax"

FUNCTIONS = (SOFTMAX, "sigmoid", "none")
"""As Hugging Face's image classification has them: what makes scores from logits."""

MAX_ID = 256
"""Characters; MLServer repeats the id in response headers, where it would be an injection."""

INTEGERS = frozenset(d.value for d in Datatype if "INT" in d.value)

CHANNELS = (1, 3, 4)

FLOATS_HINT = " (multiply values from 0 to 1 by 255, and send them as UINT8)"

TRANSPOSE_HINT = " (channels come last: transpose it to [H,W,C])"

ACCEPTED = (
    f"'{INPUT}' takes pixels, an integer array [H,W], [H,W,C] or [N,H,W,C] of values from 0 to 255 "
    f"with C 1, 3 or 4, or encoded images, BYTES [N] or [N,1] ({', '.join(FORMATS)})"
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
    def network_outputs(self) -> Mapping[str, int]:
        """The network's outputs, and how many numbers an image each."""
        ...

    def facts(self) -> dict[str, str | int | bool]:
        """What is loaded, for the metadata's parameters."""
        ...


@dataclass(frozen=True)
class ClassificationRequest:
    """What a request asks for."""

    images: Sequence[ImageSource]
    top_k: int
    outputs: tuple[str, ...]
    """Names of the protocol's outputs, in the order of the answer."""
    function: str = "softmax"
    """What makes scores from logits: one of FUNCTIONS."""

    @property
    def scored_output(self) -> str:
        """Which of the network's outputs labels and scores are made from."""
        return PROBABILITIES if self.function == SOFTMAX else LOGITS

    @property
    def network_outputs(self) -> frozenset[str]:
        """Which of the network's outputs the answer is made from."""
        return frozenset(
            self.scored_output if name in (LABELS, SCORES) else name for name in self.outputs
        )


def decode_request(request: InferenceRequest, served: Served) -> ClassificationRequest:
    """Checks everything that can be told without decoding an image; raises InvalidRequest or
    InvalidImage."""
    if request.id and not (
        len(request.id) <= MAX_ID and request.id.isascii() and request.id.isprintable()
    ):
        raise InvalidRequest(f"The 'id' must be at most {MAX_ID} printable ASCII characters.")
    tensor = _payload(request.inputs)
    asked = _parameters(request.parameters) | _parameters(tensor.parameters)
    return ClassificationRequest(
        images=_images(tensor, served.max_pixels),
        top_k=check_top_k(asked.get(TOP_K), len(served.labels)),
        outputs=_outputs(request, served),
        function=_function(asked.get(FUNCTION), served),
    )


def _parameters(parameters: Parameters | None) -> dict[str, Any]:
    """Those that were given; raises InvalidRequest for a misspelt one."""
    given = parameters.model_extra or {} if parameters else {}
    check_names(given)
    return {name: value for name, value in given.items() if value is not None}


def check_names(names: Iterable[str]) -> None:
    """Raises InvalidRequest where a name looks like `top_k` and is not; others are not ours."""
    for name in names:
        if name != TOP_K and name.lower().replace("_", "").replace("-", "") in ("topk", "k"):
            raise InvalidRequest(f"There is no parameter '{name}'; it is called '{TOP_K}'.")


def _function(name: Any, served: Served) -> str:
    if name is None:
        return SOFTMAX
    if name not in FUNCTIONS:
        raise InvalidRequest(f"'{FUNCTION}' must be one of {', '.join(FUNCTIONS)}.")
    if name != SOFTMAX and LOGITS not in served.network_outputs:
        raise InvalidRequest(f"The model has no logits, so '{FUNCTION}' can only be {SOFTMAX}.")
    return str(name)


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
    known = [LABELS, SCORES, *(name for name in OPTIONAL_OUTPUTS if name in served.network_outputs)]
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
    if not isinstance(data, (list, np.ndarray)):
        raise InvalidRequest(f"The data of '{INPUT}' must be a flat list; {ACCEPTED}.")
    if datatype == Datatype.BYTES.value and isinstance(data, list):
        return _encoded(tensor, data)
    if datatype in INTEGERS:
        return _pixels(tensor, data, max_pixels)
    hint = FLOATS_HINT if str(datatype).startswith("FP") else ""
    raise InvalidRequest(f"The datatype {str(datatype)[:20]} makes no image{hint}; {ACCEPTED}.")


def _encoded(tensor: RequestInput, data: list[Any]) -> Sequence[ImageSource]:
    """JSON brings text, which is base64; gRPC brings the bytes themselves."""
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or shape[0] < 1:
        raise InvalidRequest(f"The shape {short_shape(shape)} does not fit BYTES; {ACCEPTED}.")
    if len(data) != shape[0]:
        raise InvalidRequest(
            f"The shape {short_shape(shape)} does not fit {len(data)} elements of data."
        )
    if not all(isinstance(element, (str, bytes)) for element in data):
        raise InvalidRequest("Each encoded image must be a base64 string (in gRPC: bytes).")
    as_base64 = tensor.parameters is not None and tensor.parameters.content_type == "base64"
    return [EncodedImage(image_file(element, as_base64)) for element in data]


def _pixels(
    tensor: RequestInput, data: list[Any] | np.ndarray, max_pixels: int
) -> Sequence[ImageSource]:
    """From flat uint8, as REST and gRPC bring them, or a list of numbers, as Kafka does."""
    shape = [*tensor.shape, 1] if len(tensor.shape) == 2 else tensor.shape
    if len(shape) not in (3, 4) or shape[-1] not in CHANNELS or min(shape) < 1:
        hint = TRANSPOSE_HINT if shape[-3:-2] and shape[-3] in CHANNELS else ""
        raise InvalidRequest(
            f"The shape {short_shape(tensor.shape)} is not that of an image{hint}; {ACCEPTED}."
        )
    count, height, width, channels = [1, *shape][-4:]
    _check_size(width, height, max_pixels)
    if len(data) != math.prod(shape):
        raise InvalidRequest(
            f"The shape {short_shape(tensor.shape)} needs {math.prod(shape)} values; the data has "
            f"{len(data)}."
        )
    size = height * width * channels
    values = _uint8(data)
    return [
        PixelArray(values[i * size : (i + 1) * size].reshape(height, width, channels))
        for i in range(count)
    ]


def _uint8(values: list[Any] | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.frombuffer(bytearray(values), np.uint8)
    except (TypeError, ValueError):
        raise InvalidRequest(
            "Pixels must be whole numbers from 0 to 255 in one flat list of data."
        ) from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidImage(
            f"An image of {width}x{height} pixels is too large: the setting max_pixels allows "
            f"{max_pixels} pixels."
        )


def short_shape(shape: Sequence[int]) -> str:
    """For people: `[1,2,3]`, cut off where it is long."""
    text = ",".join(str(size) for size in shape[:6])
    return f"[{text}{',...' if len(shape) > 6 else ''}]"[:80]


def files_request(files: Sequence[bytes | str], parameters: Mapping[str, Any]) -> InferenceRequest:
    """A request for image files: bytes, as gRPC brings them, or base64 text, as JSON does."""
    tensor = RequestInput.model_construct(
        name=INPUT,
        shape=[len(files)],
        datatype=Datatype.BYTES.value,
        parameters=None,
        data=TensorData.model_construct(root=list(files)),
    )
    return InferenceRequest.model_construct(
        id=None, parameters=Parameters(**parameters), inputs=[tensor], outputs=None
    )
