"""Forms with files, as `curl -F file=@image.jpg` and browsers send them (multipart/form-data)."""

import logging
from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.base64_images import is_data_url

MAX_PARTS = 1024
MAX_HEADERS = 32
MAX_HEADER_SIZE = 8192
"""Bytes of one header of a part."""

MAX_BOUNDARY = 70
"""Characters, as RFC 2046 has it."""

MAX_PADDING = 64
"""Spaces behind a boundary."""

MAX_FIELD = 256
"""Bytes of a text field that are kept; ours are shorter."""

NOT_A_FORM = "The form is not valid: it has no parts, or ends before its last boundary."
FORM_IN_FORM = (
    "A form within the form is not supported: give each file a field of its own, with curl: "
    "-F a=@A.jpg -F b=@B.jpg."
)

# It warns of each form that is refused, which is logged with the other refusals.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Form:
    """The files and text fields of a form."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.fields: dict[str, str] = {}
        self.is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]
        self._content: list[bytes] = []

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """Return what the parser calls as it reads a form."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._headers, self._content = {}, []

    def _add_header(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()], self._header = value, [b"", b""]

    def _end_part(self) -> None:
        content = b"".join(self._content)
        kind, _ = parse_options_header(self._headers.get(b"content-type"))
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        is_text = kind.startswith(b"text/") or kind in (b"", b"application/json")
        if kind.startswith(b"multipart/"):
            raise InvalidRequest(FORM_IN_FORM)
        if not content and not options.get(b"filename", b"x"):
            return  # a browser's file field in which no file was chosen
        is_file = b"filename" in options or b"filename*=" in disposition or not is_text
        if is_file or is_data_url(content):
            self.files.append(content)
        elif b"name" in options:
            value = content[:MAX_FIELD].decode("utf-8", "replace")
            self.fields[options[b"name"].decode("utf-8", "replace")] = value

    def _end(self) -> None:
        self.is_complete = True


def read_form(body: bytes, content_type: str) -> Form:
    """Return the files and fields of a form of at most MAX_PARTS; raises InvalidRequest."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise InvalidRequest("The Content-Type of a form must state its boundary.")
    form = Form()
    callbacks: Any = form.callbacks()
    parser = MultipartParser(
        boundary, callbacks, max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_SIZE
    )
    try:
        parser.write(_from_first_delimiter(body, b"--" + boundary))
    except FormParserError:
        form.is_complete = False
    if not form.is_complete:
        raise InvalidRequest(NOT_A_FORM)
    return form


def _from_first_delimiter(body: bytes, delimiter: bytes) -> bytes:
    """Return the body from its first delimiter, with as many as the parser may see: it takes
    microseconds for each, and for each space behind one."""
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    at, count = start, 0
    while at >= 0:
        at += len(delimiter)
        count += 1
        if count > MAX_PARTS + 1:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        if not body[at : at + MAX_PADDING].strip(b" \t"):
            raise InvalidRequest(NOT_A_FORM)
        at = body.find(b"\r\n" + delimiter, at)
    after = start + len(delimiter)
    if body[after : after + 1] in (b" ", b"\t"):  # which the parser takes behind others only
        return delimiter + body[after:].lstrip(b" \t")
    return body[start:]
