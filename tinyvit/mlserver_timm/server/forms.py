"""Forms with files, as `curl -F file=@picture.jpg` and browsers send them (multipart/form-data)."""

import re
from dataclasses import dataclass, field

from mlserver_timm.errors import InvalidRequest

MAX_PARTS = 1024
MAX_PART_HEADERS = 8192
"""Bytes."""

BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;]{1,70}))', re.IGNORECASE)
FIELD_NAME = re.compile(rb';\s*name="?([^";\r\n]*)', re.IGNORECASE)
FILE_NAME = re.compile(rb";\s*filename\*?=", re.IGNORECASE)
NO_FILE = re.compile(rb';\s*filename="?"?\s*(;|$)', re.IGNORECASE | re.MULTILINE)
"""What a browser sends for a field in which no file was chosen."""

TYPE = re.compile(rb"^content-type:\s*([^\s;]*)", re.IGNORECASE | re.MULTILINE)
TEXT_TYPES = re.compile(rb"text/.*|application/json", re.IGNORECASE)
"""With which some clients send every field, numbers too."""
FORM_IN_FORM = (
    "A form within the form is not read; give each file a field of its own, with curl: -F a=@A.jpg "
    "-F b=@B.jpg."
)
NOT_A_FORM = "The form is not valid: it has no parts, or ends before its last boundary."


@dataclass
class Form:
    """What a form holds."""

    files: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def read_form(body: bytes, content_type: str) -> Form:
    """The parts of a body; raises InvalidRequest unless it is a form of at most MAX_PARTS."""
    found = BOUNDARY.search(content_type)
    if not found:
        raise InvalidRequest("The Content-Type of a form must tell its boundary.")
    delimiter = b"--" + (found[1] or found[2]).encode("latin-1")
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if not body.startswith(delimiter, at):
        raise InvalidRequest(NOT_A_FORM)
    form = Form()
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        if body.startswith(b"--", at):
            return form
        headers_end = body.find(b"\r\n\r\n", at, at + MAX_PART_HEADERS)
        end = body.find(b"\r\n" + delimiter, headers_end + 4)
        if headers_end < 0 or end < 0:
            raise InvalidRequest(NOT_A_FORM)
        _add(form, body[at:headers_end], body[headers_end + 4 : end])
        at = end + 2
    raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")


def _add(form: Form, headers: bytes, content: bytes) -> None:
    kind = TYPE.search(headers)
    if kind and kind[1].lower().startswith(b"multipart/"):
        raise InvalidRequest(FORM_IN_FORM)
    if not content and NO_FILE.search(headers):
        return
    if FILE_NAME.search(headers) or kind and not TEXT_TYPES.fullmatch(kind[1]):
        form.files.append(content)
        return
    name = FIELD_NAME.search(headers)
    if name:
        form.fields[name[1].decode("utf-8", "replace")] = content[:256].decode("utf-8", "replace")
