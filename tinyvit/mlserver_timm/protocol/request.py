"""Requests to the model, from any transport.

Every body and message is first read into an `InferRequest`, which has the fields of the Open
Inference Protocol. `classification_request` makes all checks, once, and returns what the pipeline
answers: a `ClassificationRequest`.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlserver_timm.checkpoints.network import EMBEDDING, LOGITS, PROBABILITIES
from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images.sources import FORMATS, ImageSource
from mlserver_timm.protocol.base64_images import file_bytes

INPUT, LABELS, SCORES = "payload", "labels", "scores"

OPTIONAL_OUTPUTS = (LOGITS, EMBEDDING)
"""Outputs that are sent only where a request names them."""

TOP_K, FUNCTION = "top_k", "function_to_apply"
DEFAULT_TOP_K = 5
SOFTMAX, SIGMOID = "softmax", "sigmoid"
FUNCTIONS = (SOFTMAX, SIGMOID, "none")
"""How scores are made from logits, with the names of Hugging Face's image classification."""

CONTENT_TYPE = "content_type"
BINARY_OUTPUT, BINARY_OUTPUTS = "binary_data", "binary_data_output"
"""Parameters of the binary tensor data extension: of an output and of a request."""

MAX_ID = 256
"""Characters of an id. Responses repeat it in a header, so it must be printable ASCII."""

MAX_VALUES = 100_000
"""Maximum number of labels and numbers in an answer's JSON, which takes half a second to write.
Numbers in binary tensors do not count. All outputs of an image with 21,841 classes are 66,000."""

BYTES = "BYTES"
INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))

CHANNELS = (1, 3, 4)

MAX_ASPECT = 64
"""Maximum ratio of the longer to the shorter side of a pixel array. Beyond it the array is no image
that a camera takes, but features, a flattened image, or a file of an unknown format. Files are not
limited: their header says what they are, while a shape is easily wrong. Tiny arrays are accepted,
as timm accepts them: clients use them to try the connection."""

FILE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|.{4}ftyp|II[*+]\0|MM\0[*+]"
    rb"|BM.{4}\0{4}.{4}[\x0c(48@l|]\0{3}",  # a BMP's info header has one of these lengths
    re.DOTALL,
)
"""First bytes of image files: of every accepted format, and of formats that are refused by name."""

ACCEPTED = (
    f"'{INPUT}' takes pixels, an integer array [H,W], [H,W,C] or [N,H,W,C] of values from 0 to 255 "
    f"with C 1, 3 or 4, or encoded images, BYTES [N] or [N,1] ({', '.join(FORMATS)})"
)

Parameters = Mapping[str, Any]
"""Values are text, numbers, booleans, or None, which counts as absent."""

TensorData = Sequence[bytes] | np.ndarray
"""A list of bytes for BYTES, a flat uint8 array for an integer type, else an empty list."""


@dataclass(frozen=True)
class InputTensor:
    """One input of a request."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: TensorData
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class InferRequest:
    """A request of the Open Inference Protocol, read but not yet checked."""

    inputs: Sequence[InputTensor]
    outputs: Mapping[str, Parameters] = field(default_factory=dict)
    """Names of the requested outputs, and their parameters."""
    parameters: Parameters = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True)
class ClassificationRequest:
    """A request that passed every check: which images, and what to answer about them."""

    images: Sequence[ImageSource]
    top_k: int
    outputs: tuple[str, ...]
    """Names of the outputs, in the order of the answer."""
    function: str = SOFTMAX
    """How scores are made from logits: one of FUNCTIONS."""
    id: str | None = None
    binary_outputs: frozenset[str] = frozenset()
    """Outputs that are to follow the JSON as binary tensors."""

    @property
    def scored_output(self) -> str:
        """The network's output that labels and scores are made from."""
        return PROBABILITIES if self.function == SOFTMAX else LOGITS

    @property
    def network_outputs(self) -> frozenset[str]:
        """The network's outputs that the answer is made from."""
        return frozenset(
            self.scored_output if name in (LABELS, SCORES) else name for name in self.outputs
        )


def classification_request(
    request: InferRequest, network_outputs: Mapping[str, int]
) -> ClassificationRequest:
    """Return the checked request: everything is checked that does not need a decoded image.

    `network_outputs` maps each of the network's outputs to its number of values for an image.
    Parameters of the input override those of the request. Raises InvalidRequest or InvalidImage.
    """
    tensor = _payload(request.inputs)
    parameters: dict[str, Any] = {}
    for given in (request.parameters, tensor.parameters):
        check_names(given)
        if not isinstance(given.get(CONTENT_TYPE), str | None):
            raise InvalidRequest(
                f"The parameter '{CONTENT_TYPE}' must be text, not "
                f"{str(given[CONTENT_TYPE])[:40]!r}."
            )
        parameters |= {name: value for name, value in given.items() if value is not None}
    outputs = _outputs(request.outputs, network_outputs)
    checked = ClassificationRequest(
        images=_images(tensor),
        top_k=_top_k(parameters.get(TOP_K, DEFAULT_TOP_K), network_outputs[PROBABILITIES]),
        outputs=outputs,
        function=_function(parameters.get(FUNCTION, SOFTMAX), network_outputs),
        id=_id(request.id),
        binary_outputs=_binary_outputs(request, outputs),
    )
    _check_answer(checked, network_outputs)
    return checked


def files_request(files: Sequence[bytes], parameters: Parameters | None = None) -> InferRequest:
    """Return a request for image files, which may be base64 text; raises InvalidImage."""
    data = [file_bytes(file) for file in files]
    return InferRequest([InputTensor(INPUT, BYTES, [len(data)], data)], {}, parameters or {})


def unwrap_files(request: InferRequest) -> InferRequest:
    """Return the request with image files in place of their base64 text; raises InvalidImage.

    64 MB of base64 take 0.3 s: this is called where a body is read, a large one on a thread.
    """
    try:
        inputs = [
            replace(tensor, data=[file_bytes(element) for element in tensor.data])
            if tensor.datatype == BYTES and not isinstance(tensor.data, np.ndarray)
            else tensor
            for tensor in request.inputs
        ]
    except InvalidImage as error:
        error.request_id = request.id
        raise
    return replace(request, inputs=inputs)


def check_names(names: Iterable[str]) -> None:
    """Raise InvalidRequest for a parameter that looks like `top_k`; others are ignored."""
    for name in names:
        if name != TOP_K and name.lower().replace("_", "").replace("-", "") in ("topk", "k"):
            raise InvalidRequest(f"Unknown parameter '{name[:40]}': it is called '{TOP_K}'.")


def short_shape(shape: Sequence[int]) -> str:
    """Return a shape for error messages: `[1,2,3]`, cut off where it is long."""
    text = ",".join(str(size)[:20] for size in shape[:6])
    return f"[{text}{',...' if len(shape) > 6 else ''}]"[:80]


def _payload(inputs: Sequence[InputTensor]) -> InputTensor:
    names = [tensor.name for tensor in inputs]
    if names != [INPUT]:
        got = ", ".join(repr(name[:40]) for name in names[:5]) or "none"
        raise InvalidRequest(f"The model takes exactly one input, '{INPUT}'; it got {got}.")
    return inputs[0]


def _id(value: str | None) -> str | None:
    if value and not (len(value) <= MAX_ID and value.isascii() and value.isprintable()):
        raise InvalidRequest(
            f"The 'id' must be at most {MAX_ID} printable ASCII characters, not {value[:40]!r}."
        )
    return value


def _top_k(value: Any, classes: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(
            f"'{TOP_K}' must be a whole number from 1 to {classes}, not {str(value)[:20]!r}; a "
            f"larger number returns all classes."
        )
    return min(value, classes)


def _function(name: Any, network_outputs: Collection[str]) -> str:
    if name not in FUNCTIONS:
        raise InvalidRequest(
            f"'{FUNCTION}' must be one of {', '.join(FUNCTIONS)}, not {str(name)[:40]!r}."
        )
    if name != SOFTMAX and LOGITS not in network_outputs:
        raise InvalidRequest(f"The model has no logits, so '{FUNCTION}' can only be {SOFTMAX}.")
    return str(name)


def _outputs(names: Iterable[str], network_outputs: Collection[str]) -> tuple[str, ...]:
    optional = [name for name in OPTIONAL_OUTPUTS if name in network_outputs]
    *others, last = available = [LABELS, SCORES, *optional]
    for name in names:
        if name not in available:
            raise InvalidRequest(
                f"Unknown output '{name[:40]}': the outputs are {', '.join(map(repr, others))} and "
                f"{last!r}."
            )
    return tuple(names) or (LABELS, SCORES)


def _check_answer(request: ClassificationRequest, network_outputs: Mapping[str, int]) -> None:
    """Raise InvalidRequest if the answer would be too large."""
    widths = {**network_outputs, LABELS: request.top_k, SCORES: request.top_k}
    as_text = [n for n in request.outputs if n == LABELS or n not in request.binary_outputs]
    values = len(request.images) * sum(widths[name] for name in as_text)
    if values > MAX_VALUES:
        raise InvalidRequest(
            f"The answer would have {values} labels and numbers; at most {MAX_VALUES} are sent. "
            f"Send fewer images, or ask for a smaller '{TOP_K}', or for numbers as binary tensors."
        )


def _binary_outputs(request: InferRequest, outputs: Iterable[str]) -> frozenset[str]:
    """Return those of the outputs that the request wants as binary tensors."""
    default = request.parameters.get(BINARY_OUTPUTS)
    own = {name: request.outputs.get(name, {}).get(BINARY_OUTPUT) for name in outputs}
    values = [(BINARY_OUTPUTS, default), *((BINARY_OUTPUT, value) for value in own.values())]
    for parameter, value in values:
        if not isinstance(value, bool | None):
            raise InvalidRequest(
                f"The parameter '{parameter}' must be true or false, not {str(value)[:40]!r}."
            )
    return frozenset(name for name, value in own.items() if (default if value is None else value))


def _images(tensor: InputTensor) -> Sequence[ImageSource]:
    datatype, shape, data = tensor.datatype, tensor.shape, tensor.data
    if datatype in INTEGERS and isinstance(data, np.ndarray):
        return _arrays(shape, data)
    if datatype != BYTES or isinstance(data, np.ndarray):
        hint = "; multiply values from 0 to 1 by 255" if datatype.startswith("FP") else ""
        raise InvalidRequest(
            f"Unsupported datatype {datatype[:20]!r}: send pixels as UINT8{hint}; {ACCEPTED}."
        )
    if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [1], (), (1,)):
        raise InvalidRequest(f"The shape {short_shape(shape)} does not fit BYTES; {ACCEPTED}.")
    if len(data) != shape[0]:
        raise InvalidRequest(
            f"The shape {short_shape(shape)} does not fit {len(data)} elements of data."
        )
    return list(data)


def _arrays(shape: Sequence[int], values: np.ndarray) -> list[ImageSource]:
    files = _files_in_rows(shape, values)
    if files:
        return files
    full = [*shape, 1] if len(shape) == 2 else list(shape)
    if len(full) not in (3, 4) or full[-1] not in CHANNELS or min(full) < 1:
        is_transposed = bool(full[-3:-2]) and full[-3] in CHANNELS
        hint = " (channels come last: transpose it to [H,W,C])" if is_transposed else ""
        raise InvalidRequest(
            f"The shape {short_shape(shape)} is not that of an image{hint}; {ACCEPTED}."
        )
    count, height, width, channels = [1, *full][-4:]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InvalidRequest(
            f"An array of {str(width)[:20]}x{str(height)[:20]} pixels is not an image: one side is "
            f"more than {MAX_ASPECT} times the other. Send the bytes of a file as BYTES."
        )
    _check_count(shape, values)
    return list(values.reshape(count, height, width, channels))


def _files_in_rows(shape: Sequence[int], values: np.ndarray) -> list[ImageSource]:
    """Return the image files in the rows of an array, empty where it holds none.

    `np.fromfile("cat.jpg", "uint8")[None]`, which Triton's clients send, would otherwise be seen as
    a grey image one pixel high. Rows of several files are filled up with zeros, which every decoder
    ignores.
    """
    is_flat = len(shape) in (1, 2)
    if not is_flat and (len(shape) not in (3, 4) or shape[-3] != 1) or min(shape) < 1:
        return []
    count = 1 if len(shape) in (1, 3) else shape[0]
    if not FILE_START.match(values[:32].tobytes()):
        return []
    _check_count(shape, values)
    return [row.tobytes() for row in values.reshape(count, -1)]


def _check_count(shape: Sequence[int], values: np.ndarray) -> None:
    if len(values) != math.prod(shape):
        raise InvalidRequest(
            f"The shape {short_shape(shape)} needs {str(math.prod(shape))[:40]} values; the data "
            f"has {len(values)}."
        )
