"""Bodies of /classify to the protocol's InferenceRequest: an image file, a form, or JSON as Hugging
Face's clients send it."""

from dataclasses import dataclass
from typing import Any

from mlserver.types import InferenceRequest

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.json_body import check_no_parameters, read_parameters
from mlserver_timm.protocol.json_reader import read_json
from mlserver_timm.protocol.request import files_request
from mlserver_timm.server.forms import read_form

FORM = "multipart/form-data"
URL_FORM = "application/x-www-form-urlencoded"
JSON_SHAPE = (
    'JSON for this route is {"inputs": "BASE64 OF AN IMAGE FILE", "parameters": {"top_k": 5}}; '
    "tensors go to /infer."
)
STRIPPED_HINT = "With curl send --data-binary @FILE: -d @FILE strips bytes."


@dataclass(frozen=True)
class ClassifyRequest:
    """A body of /classify, understood."""

    payload: InferenceRequest
    many: bool
    """Whether a list of answers is expected, one an image."""


def read_classify(body: bytes, content_type: str) -> ClassifyRequest:
    """Whichever kind the body is; raises InvalidRequest."""
    if content_type.lower().startswith(FORM):
        form = read_form(body, content_type)
        if not form.files:
            raise InvalidRequest("The form has no file; with curl: -F file=@picture.jpg.")
        return ClassifyRequest(files_request(form.files, form.fields), len(form.files) > 1)
    if body[:64].lstrip().startswith(b"{"):  # as no image does
        return ClassifyRequest(_hugging_face(read_json(body)), many=False)
    return ClassifyRequest(files_request([body], {}), many=False)


def was_stripped(body: bytes, content_type: str) -> bool:
    """Whether this is a file as `curl -d @FILE` sends it: line ends and zeros are left out."""
    return content_type == URL_FORM and not any(byte in body for byte in (b"\n", b"\r", b"\0"))


def _hugging_face(content: Any) -> InferenceRequest:
    image = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(image, str):
        raise InvalidRequest(JSON_SHAPE)
    check_no_parameters(content)
    parameters = read_parameters(content, "parameters")
    return files_request([image], (parameters and parameters.model_extra) or {})
