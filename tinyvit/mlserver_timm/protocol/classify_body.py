"""Bodies of /classify: an image file, a form, or JSON as Hugging Face's clients send it."""

import codecs
import re

from msgspec import Raw
from msgspec.json import Decoder

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.forms import read_form
from mlserver_timm.protocol.json_body import Misplaced, read_file, read_object, read_parameters
from mlserver_timm.protocol.request import InferRequest, files_request

FORM = "multipart/form-data"
URL_FORM = "application/x-www-form-urlencoded"
"""The Content-Type that curl sends by default."""

STRIPPED = (
    "The image is damaged: line ends and zeros are missing. With curl send --data-binary @FILE: "
    "-d @FILE strips bytes."
)
STRIPPED_BYTES = re.compile(rb"[\n\r\0]")
"""Bytes that `curl -d @FILE` removes; every image file has some of them."""

JSON_SHAPE = (
    'JSON for this route is {"inputs": "BASE64 OF AN IMAGE FILE", "parameters": {"top_k": 5}}; '
    "tensors go to /infer."
)


class _HuggingFace(Misplaced):
    inputs: Raw = Raw()
    parameters: Raw = Raw()


HUGGING_FACE = Decoder(_HuggingFace)


def read_classify(body: bytes, content_type: str | None = None) -> InferRequest:
    """Return the request in a body of any of these kinds; raises InvalidRequest or InvalidImage."""
    if content_type and content_type.lower().startswith(FORM):
        form = read_form(body, content_type)
        if not form.files:
            raise InvalidRequest("The form has no file; with curl: -F file=@image.jpg.")
        return files_request(form.files, form.fields)
    start = body[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):  # as no image file does
        return _hugging_face(body.removeprefix(codecs.BOM_UTF8))
    if content_type == URL_FORM and not body.isascii() and not STRIPPED_BYTES.search(body):
        raise InvalidRequest(STRIPPED)
    return files_request([body])


def _hugging_face(text: bytes) -> InferRequest:
    content = read_object(text, HUGGING_FACE)
    if memoryview(content.inputs)[:1] != b'"':
        raise InvalidRequest(JSON_SHAPE)
    parameters = read_parameters(content.parameters, "parameters")
    return files_request([read_file(content.inputs)], parameters)
