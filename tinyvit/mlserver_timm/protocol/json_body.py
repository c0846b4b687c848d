"""JSON bodies, alone or followed by binary tensors, to requests of the Open Inference Protocol.

Time and memory are bounded before anything is decoded. msgspec leaves every field as text (`Raw`),
so that only the fields that are used become Python objects, each within its own bound.
"""

import codecs
import contextlib
import re
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.base64_images import base64_error, decode_base64
from mlserver_timm.protocol.binary_tensors import read_tensor
from mlserver_timm.protocol.json_pixels import read_pixels
from mlserver_timm.protocol.request import (
    BYTES,
    INTEGERS,
    InferRequest,
    InputTensor,
    Parameters,
    TensorData,
    check_names,
    unwrap_files,
)

MAX_OUTPUTS = 16
MAX_DIMENSIONS = 8
MAX_PARAMETERS = 64
MAX_NAME = 256
"""Characters of a name, a datatype or an id."""

MAX_FIELD = 64 * 2**10
"""Bytes of JSON in any field but `data`; decoded, they take at most 2 MB."""

SMALL_BODY = 256 * 2**10
"""Bytes of JSON that take at most 20 MB and a few milliseconds, whatever they hold."""

MAX_OBJECTS, MAX_COMMAS, MAX_BACKSLASHES = 1000, 2**16, 2**21
"""Limits of a body larger than SMALL_BODY, without its pixels. Objects take memory. Commas and
backslashes take time: msgspec holds the GIL while it skips them, for 0.3 s in a body full of them.
Base64 in lines has one or two backslashes in each line."""

COUNT_SLICE = 2**20
"""Bytes that are counted or checked at once."""

LONG_ARRAY = 4096
"""Bytes from which on an array of numbers is cut out of the text before msgspec reads it: skipping
the pixels of a photograph takes msgspec 4 ms."""

MAX_HEAD = 16 * 2**10
"""Maximum number of bytes before the array that is cut out."""

PLACEHOLDER = b"[null]"
"""Replaces that array in the text that msgspec reads; it is not valid data itself."""

DATA_KEY = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[[ \t\r\n[]*-?[0-9])')

SMALL_FILE = 4 * 2**20
"""Bytes of base64 that msgspec decodes in one call: in half the time that binascii takes, but it
holds the GIL meanwhile, for 4 ms."""

BINARY_SIZE = "binary_data_size"
HEADER_LENGTH = "Inference-Header-Content-Length"

JSON_TYPE = re.compile(r"\s*application/([^;]*\+)?json\s*(;.*)?", re.IGNORECASE)
"""Content-Types of JSON, such as application/vnd.x+json; charset=utf-8."""

NOT_AN_OBJECT = "The body must be a JSON object, with Content-Type: application/json."
NOT_JSON = "The body is not valid JSON: {}."
TOO_MUCH = (
    f"The request holds too many parts: without its pixels it may have at most {MAX_OBJECTS} "
    f"objects, {MAX_COMMAS} commas and {MAX_BACKSLASHES} backslashes."
)
NOT_A_FILE = (
    "Each element of BYTES must be text: the bytes of an image file in base64, not a list of "
    "numbers. Send pixels with the datatype UINT8."
)

TYPES = {
    **{"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"},
    **{"array": "a list", "object": "a JSON object", "null": "null"},
}
"""JSON's types by msgspec's names, as error messages call them."""

T = TypeVar("T")
Object = TypeVar("Object", bound="Misplaced")


class Numbers(NamedTuple):
    """The long array that a text has at `text[start:end]`; a copy would take a millisecond."""

    text: bytes
    start: int
    end: int


class Misplaced(Struct):
    """Parameters outside of `parameters`, where they would be ignored."""

    top_k: Raw = Raw()
    function_to_apply: Raw = Raw()
    topk: Raw = Raw()
    k: Raw = Raw()
    topK: Raw = Raw()  # noqa: N815


class _Input(Struct):
    name: Raw
    datatype: Raw
    shape: Raw
    data: Raw = Raw()
    parameters: Raw = Raw()


class _Body(Misplaced):
    inputs: list[_Input] = []
    outputs: Raw = Raw()
    parameters: Raw = Raw()
    id: Raw = Raw()


_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Parameters = Annotated[dict[str, Any], Meta(max_length=MAX_PARAMETERS)]


class _Output(Struct):
    name: _Name
    parameters: _Parameters | None = None


BODY = Decoder(_Body)
NAME, OPTIONAL_NAME = Decoder(_Name), Decoder(_Name | None)
SHAPE = Decoder(Annotated[list[int], Meta(max_length=MAX_DIMENSIONS)])
PARAMETERS = Decoder(_Parameters | None)
OUTPUTS = Decoder(Annotated[list[_Output], Meta(max_length=MAX_OUTPUTS)] | None)
FILE, ELEMENTS, TEXT = Decoder(bytes), Decoder(list[Raw]), Decoder(str)


def read_infer(
    body: bytes, content_type: str | None = None, header_length: str | None = None
) -> InferRequest:
    """Return the request in a body: JSON, or `header_length` bytes of JSON and then tensors.

    `content_type` and `header_length` are the values of the headers, None where they are absent.
    Raises InvalidRequest or InvalidImage.
    """
    if header_length is not None:
        text = body[: _header_length(header_length, body)]
    elif JSON_TYPE.fullmatch(content_type or "application/json"):
        text = body
    else:
        raise InvalidRequest(NOT_AN_OBJECT)
    content, numbers = _read_body(text.removeprefix(codecs.BOM_UTF8))
    tensor_bytes = memoryview(body)[len(text) :]
    request = InferRequest(
        inputs=[
            _input(tensor, f"inputs.{i}", numbers, tensor_bytes)
            for i, tensor in enumerate(content.inputs)
        ],
        outputs=_outputs(content.outputs) if content.outputs else {},
        parameters=read_parameters(content.parameters, "parameters"),
        id=_field(content.id, OPTIONAL_NAME, "id") if content.id else None,
    )
    return unwrap_files(request)


def read_object(text: bytes, decoder: Decoder[Object]) -> Object:
    """Return what a JSON text says, within the bounds; raises InvalidRequest, also for a misplaced
    parameter."""
    if len(text) > SMALL_BODY:
        bounds = ((b"{", MAX_OBJECTS), (b",", MAX_COMMAS), (b"\\", MAX_BACKSLASHES))
        for character, limit in bounds:
            _check_count(text, character, limit)
    if not text.isascii():
        _check_utf8(text)
    content = _decode(text, decoder, "")
    misplaced = [name for name in Misplaced.__struct_fields__ if getattr(content, name)]
    if misplaced:
        check_names(misplaced)
        raise InvalidRequest(
            f"'{misplaced[0]}' belongs in the request's 'parameters': move it there."
        )
    return content


def read_parameters(text: Raw, path: str) -> Parameters:
    """Return the parameters in a field, empty where it is absent; raises InvalidRequest."""
    return _scalars(_field(text, PARAMETERS, path), path) if text else {}


def read_file(text: Raw) -> bytes:
    """Return the bytes that a JSON string holds in base64; raises InvalidRequest."""
    view = memoryview(text)
    if view[:1] != b'"':
        raise InvalidRequest(NOT_A_FILE)
    if len(view) <= SMALL_FILE:
        with contextlib.suppress(msgspec.MsgspecError):  # another kind of base64, or none
            return FILE.decode(text)
    with contextlib.suppress(ValueError):
        return decode_base64(view[1:-1])
    try:
        return decode_base64(_unescaped(text))
    except ValueError:
        raise base64_error(bytes(view[1:-1])) from None


def _check_count(text: bytes, character: bytes, limit: int) -> None:
    count = 0
    for start in range(0, len(text), COUNT_SLICE):
        count += text.count(character, start, start + COUNT_SLICE)
        if count > limit:
            raise InvalidRequest(TOO_MUCH)


def _check_utf8(text: bytes) -> None:
    """Raise InvalidRequest if the text is not UTF-8: msgspec does not check skipped strings."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), COUNT_SLICE):
            decoder.decode(text[start : start + COUNT_SLICE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InvalidRequest(NOT_JSON.format("it is not UTF-8")) from None


def _field(text: Raw, decoder: Decoder[T], path: str) -> T:
    if len(memoryview(text)) > MAX_FIELD:
        raise _invalid(path, f"at most {MAX_FIELD} bytes are accepted")
    return _decode(text, decoder, path)


def _decode(text: bytes | Raw, decoder: Decoder[T], path: str) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        steps = [path, *re.findall(r"\w+", place)]
        raise _invalid(".".join(filter(None, steps)), reason) from None
    except RecursionError:
        raise InvalidRequest(NOT_JSON.format("it is nested too deeply")) from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise InvalidRequest(NOT_JSON.format(reason)) from None


def _invalid(path: str, reason: str) -> InvalidRequest:
    """Return the error for a part of the request; type names in backticks are msgspec's."""
    words = re.sub(
        r"`(.*?)`",
        lambda match: " or ".join(TYPES.get(each, f"'{each}'") for each in match[1].split(" | ")),
        reason,
    )
    return InvalidRequest(f"The request is not valid: {path + ': ' if path else ''}{words}.")


def _read_body(text: bytes) -> tuple[_Body, Numbers | None]:
    """Return the parsed body, and the long array of numbers that PLACEHOLDER replaces in it."""
    match = DATA_KEY.search(text, 0, MAX_HEAD)
    if match:
        numbers = Numbers(text, match.end(), _end_of_numbers(text, match.end()))
        if numbers.end - numbers.start > LONG_ARRAY:
            short = text[: numbers.start] + PLACEHOLDER + text[numbers.end :]
            body = read_object(short, BODY)
            if short.count(PLACEHOLDER) == 1 and any(
                each.data and bytes(each.data) == PLACEHOLDER for each in body.inputs
            ):
                return body, numbers
    return read_object(text, BODY), None


def _end_of_numbers(text: bytes, start: int) -> int:
    """Return where the list of numbers at `start` ends: before the next string and the end of its
    object."""
    stops = [at for at in (text.find(b'"', start), text.find(b"}", start)) if at >= 0]
    return text.rfind(b"]", start, min(stops, default=len(text))) + 1


def _header_length(value: str, body: bytes) -> int:
    is_number = value.isascii() and value.isdigit() and len(value) < 12
    if not is_number or not 0 < int(value) <= len(body):
        raise InvalidRequest(
            f"Invalid {HEADER_LENGTH} {value[:20]!r}: send the length of the JSON at the beginning "
            f"of the body, from 1 to the body's {len(body)} bytes."
        )
    return int(value)


def _scalars(values: dict[str, Any] | None, path: str) -> Parameters:
    """Return the values without `headers`, which MLServer reserves."""
    scalars = {name: value for name, value in (values or {}).items() if name != "headers"}
    for name, value in scalars.items():
        if isinstance(value, (list, dict)):
            raise _invalid(f"{path}.{name[:40]}", "expected text, a number or a boolean")
    return scalars


def _outputs(text: Raw) -> dict[str, Parameters]:
    return {
        output.name: _scalars(output.parameters, f"outputs.{i}.parameters")
        for i, output in enumerate(_field(text, OUTPUTS, "outputs") or ())
    }


def _input(
    tensor: _Input, path: str, numbers: Numbers | None, tensor_bytes: memoryview
) -> InputTensor:
    name = _field(tensor.name, NAME, f"{path}.name")
    datatype = _field(tensor.datatype, NAME, f"{path}.datatype")
    shape = _field(tensor.shape, SHAPE, f"{path}.shape")
    parameters = read_parameters(tensor.parameters, f"{path}.parameters")
    if "shared_memory_region" in parameters:
        raise _invalid(path, "shared memory is not supported; send the data")
    size = parameters.get(BINARY_SIZE)
    if not (tensor.data or tensor_bytes or BINARY_SIZE in parameters):
        raise _invalid(f"{path}.data", "the field is missing")
    if tensor.data and not tensor_bytes:
        data = _json_data(tensor.data, datatype, shape, numbers, f"{path}.data")
    elif tensor.data or type(size) is not int or size != len(tensor_bytes):
        raise _invalid(
            path,
            f"expected either 'data', or a '{BINARY_SIZE}' of the {len(tensor_bytes)} bytes behind "
            f"the JSON, whose length the header {HEADER_LENGTH} states",
        )
    else:
        data = read_tensor(tensor_bytes, datatype, shape)
    return InputTensor(name, datatype, shape, data, parameters)


def _json_data(
    data: Raw, datatype: str, shape: list[int], numbers: Numbers | None, path: str
) -> TensorData:
    """Return pixels, or the files in a list of base64 strings or in a list of lists of one."""
    if datatype in INTEGERS:
        text = bytes(data)
        if numbers and text == PLACEHOLDER:
            return read_pixels(numbers.text, shape, numbers.start, numbers.end)
        return read_pixels(text, shape)
    if datatype != BYTES:
        return []
    elements = _decode(data, ELEMENTS, path)
    if len(shape) == 2 and all(memoryview(each)[:1] == b"[" for each in elements):
        rows = [_decode(each, ELEMENTS, path) for each in elements]
        elements = [element for row in rows for element in row]
    return [read_file(element) for element in elements]


def _unescaped(text: Raw) -> bytes:
    """Return the text of a JSON string that has escapes.

    Raises ValueError if it has none, or has characters beyond Latin-1: it cannot be base64, and
    decoding it would take four times its memory.
    """
    content = bytes(text)
    has_wide = not content.isascii() or content.count(b"\\u") != content.count(b"\\u00")
    if b"\\" not in content or has_wide:
        raise ValueError("no base64")
    del content  # as large as what follows
    return _decode(text, TEXT, "").encode()
