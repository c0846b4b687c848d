"""Bodies of /classify: an image file, a form, or JSON as Hugging Face's clients send it."""

import codecs
from dataclasses import dataclass

from msgspec import Raw
from msgspec.json import Decoder

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.forms import read_form
from mlserver_timm.protocol.json_body import Misplaced, read_file, read_object, read_parameters
from mlserver_timm.protocol.request import InferRequest, files_request

FORM = "multipart/form-data"
URL_FORM = "application/x-www-form-urlencoded"
JSON_SHAPE = (
    'JSON for this route is {"inputs": "BASE64 OF AN IMAGE FILE", "parameters": {"top_k": 5}}; '
    "tensors go to /infer."
)
STRIPPED_HINT = "With curl send --data-binary @FILE: -d @FILE strips bytes."


@dataclass(frozen=True)
class ClassifyRequest:
    """What a body of /classify asks."""

    request: InferRequest
    many: bool
    """Whether the answer is a list of rankings, one for each image."""


class _HuggingFace(Misplaced):
    inputs: Raw = Raw()
    parameters: Raw = Raw()


HUGGING_FACE = Decoder(_HuggingFace)


def read_classify(body: bytes, content_type: str) -> ClassifyRequest:
    """Return the request in a body of any of these kinds; raises InvalidRequest."""
    if content_type.lower().startswith(FORM):
        form = read_form(body, content_type)
        if not form.files:
            raise InvalidRequest("The form has no file; with curl: -F file=@image.jpg.")
        return ClassifyRequest(files_request(form.files, form.fields), len(form.files) > 1)
    start = body[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):  # as no image file does
        return ClassifyRequest(_hugging_face(body.removeprefix(codecs.BOM_UTF8)), many=False)
    return ClassifyRequest(files_request([body]), many=False)


def was_stripped(body: bytes, content_type: str) -> bool:
    """Return whether this is a file as `curl -d @FILE` sends it: without line ends and zeros."""
    return content_type == URL_FORM and not any(byte in body for byte in (b"\n", b"\r", b"\0"))


def _hugging_face(text: bytes) -> InferRequest:
    content = read_object(text, HUGGING_FACE)
    content.check()
    if memoryview(content.inputs)[:1] != b'"':
        raise InvalidRequest(JSON_SHAPE)
    parameters = read_parameters(content.parameters, "parameters")
    return files_request([read_file(content.inputs)], parameters)
