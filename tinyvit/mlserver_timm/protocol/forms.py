"""Forms with files, as `curl -F file=@image.jpg` and browsers send them (multipart/form-data)."""

import contextlib
import logging
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.base64_images import is_data_url

MAX_PARTS = 1024
"""Maximum number of parts in a form; the parser takes microseconds for each."""

MAX_HEADERS = 32
"""Maximum number of headers in a part; browsers and curl send two."""

MAX_HEADER_SIZE = 8192
"""Bytes of one header of a part."""

MAX_OPTIONS = 64
"""Maximum number of parameters in a header, each of which takes 1.4 µs; browsers send two."""

MAX_BOUNDARY = 70
"""Maximum length of a boundary in characters (RFC 2046, section 5.1.1)."""

MAX_PADDING = 64
"""Spaces behind a boundary."""

MAX_FIELD = 256
"""Bytes of a text field that are kept; ours are shorter."""

NOT_A_FORM = "The form is not valid: it has no parts, or ends before its last boundary."
FORM_IN_FORM = (
    "A form within the form is not supported: give each file a field of its own, with curl: "
    "-F a=@A.jpg -F b=@B.jpg."
)

# python_multipart warns of each refused form, which this package's own log names, too.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def parse_options(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return a header's value and options; raises InvalidRequest for more than MAX_OPTIONS."""
    if header.count(b";") > MAX_OPTIONS:
        raise InvalidRequest(f"A header of the form has more than {MAX_OPTIONS} parameters.")
    return parse_options_header(header)


class Form:
    """The files and text fields of a form, which it gets from the parser's callbacks."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.fields: dict[str, str] = {}
        self.is_complete = False
        self.on_part_begin()
        self.on_header_begin()

    def on_part_begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._content = b""

    def on_header_begin(self) -> None:
        self._name = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def on_part_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options(disposition)
        kind, _ = parse_options(self._headers.get(b"content-type", b""))
        if kind.startswith(b"multipart/"):
            raise InvalidRequest(FORM_IN_FORM)
        is_text = kind.startswith(b"text/") or kind in (b"", b"application/json")
        has_name = b"filename" in options or b"filename*=" in disposition
        if has_name or not is_text or is_data_url(self._content):
            if self._content or options.get(b"filename") != b"":  # else no file was chosen
                self.files.append(self._content)
        elif b"name" in options:
            value = self._content[:MAX_FIELD].decode("utf-8", "replace")
            self.fields[options[b"name"].decode("utf-8", "replace")] = value

    def on_end(self) -> None:
        self.is_complete = True


def read_form(body: bytes, content_type: str) -> Form:
    """Return the files and fields of a form of at most MAX_PARTS; raises InvalidRequest."""
    boundary = parse_options(content_type.encode("latin-1"))[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise InvalidRequest(
            f"The Content-Type of a form must state its boundary, of 1 to {MAX_BOUNDARY} "
            f"characters; it has {len(boundary)}."
        )
    body = _from_first_delimiter(body, b"--" + boundary)
    form = Form()
    callbacks: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    limits = {"max_header_count": MAX_HEADERS, "max_header_size": MAX_HEADER_SIZE}
    with contextlib.suppress(FormParserError):
        MultipartParser(boundary, callbacks, **limits).write(body)
    if not form.is_complete:
        raise InvalidRequest(NOT_A_FORM)
    return form


def _from_first_delimiter(body: bytes, delimiter: bytes) -> bytes:
    """Return the body from its first delimiter on.

    Raises InvalidRequest for more than MAX_PARTS parts, or MAX_PADDING spaces behind a delimiter:
    the parser takes microseconds for each.
    """
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    at, count = start, 0
    while at >= 0:
        after = at + len(delimiter)
        count += 1
        if count > MAX_PARTS + 1:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        if not body[after : after + MAX_PADDING].strip(b" \t"):
            raise InvalidRequest(NOT_A_FORM)
        line = body.find(b"\r\n" + delimiter, after)
        at = line if line < 0 else line + 2
    after = start + len(delimiter)
    if body[after : after + 1] in (b" ", b"\t"):  # the parser accepts spaces only behind later ones
        return delimiter + body[after:].lstrip(b" \t")
    return body[start:]
