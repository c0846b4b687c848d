"""Base64 text to the bytes of an image file."""

import base64
import binascii
import io
import re

from mlserver_timm.errors import InvalidImage, InvalidRequest

BASE64_SLICE = 2**20
"""Characters decoded at once, a multiple of 4."""


DATA_URL = re.compile(r"data:[\w./+-]*(;[\w=.-]+)*;base64,", re.IGNORECASE)


ADDRESS = re.compile(r"\w[\w+.-]*://|www\.\w")


FILE_NAME = re.compile(r"(.*[/\\])?[^/\\]+\.\w{2,5}([?#].*)?$", re.DOTALL)
"""Text that names an image and is none."""


MAX_FILE_NAME = 300


BASE64_CHARACTERS = re.compile(rb"[\w+/=\s-]+")


STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


WHITESPACE = b" \t\r\n\v\f"


def from_base64(text: bytes | str) -> bytes:
    """The bytes in base64 text of either alphabet, also with line breaks, without padding, or as a
    `data:` URL; raises InvalidRequest."""
    try:
        return _from_base64_in_slices(text)
    except (binascii.Error, ValueError):
        pass
    try:
        return _from_unusual_base64(text)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "The image is an address or a path; nothing is fetched: send the image's bytes, in "
            "JSON as base64."
            if is_address(text)
            else "The image is not valid base64."
        ) from None


def _from_base64_in_slices(text: bytes | str) -> bytes:
    """Strictly, and so that others may run meanwhile: 60 MB at once take a quarter of a second."""
    padding = text.find("=") if isinstance(text, str) else text.find(b"=")
    if 0 <= padding < len(text) - 2:
        raise ValueError("padding in the middle")
    with io.BytesIO() as decoded:
        for start in range(0, len(text), BASE64_SLICE):
            piece = text[start : start + BASE64_SLICE]
            decoded.write(base64.b64decode(piece, validate=True))
        return decoded.getvalue()


def _from_unusual_base64(text: bytes | str) -> bytes:
    head = DATA_URL.match(_beginning(text))
    start = head.end() if head else 0
    padding = text.find("=", start) if isinstance(text, str) else text.find(b"=", start)
    end = len(text) if padding < 0 else padding
    if _standard(text[end:]).strip(b"="):
        raise ValueError("padding in the middle")
    with io.BytesIO() as decoded:
        rest = b""
        for at in range(start, end, BASE64_SLICE):
            rest += _standard(text[at : min(end, at + BASE64_SLICE)])
            whole = len(rest) - len(rest) % 4
            decoded.write(base64.b64decode(rest[:whole], validate=True))
            rest = rest[whole:]
        decoded.write(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
        return decoded.getvalue()


def _standard(text: bytes | str) -> bytes:
    """In the standard alphabet and in one line; raises UnicodeEncodeError, a ValueError."""
    ascii_text = text.encode("ascii") if isinstance(text, str) else text
    return ascii_text.translate(STANDARD_ALPHABET, WHITESPACE)


def _beginning(text: bytes | str) -> str:
    head = text[:MAX_FILE_NAME]
    return head.decode("ascii", "replace") if isinstance(head, bytes) else head


def is_address(text: bytes | str) -> bool:
    head = _beginning(text).strip()
    is_short = len(text) < MAX_FILE_NAME
    return bool(ADDRESS.match(head) or is_short and FILE_NAME.match(head))


def from_base64_bytes(data: bytes) -> bytes:
    """What base64 text sent as bytes holds; nothing where it is none."""
    if not DATA_URL.match(_beginning(data)) and not BASE64_CHARACTERS.fullmatch(data[:64]):
        return b""
    try:
        return from_base64(data)
    except InvalidRequest:
        return b""


def image_file(data: bytes | str, is_base64: bool = False) -> bytes:
    """Return the bytes of an image file that came as bytes or as base64 text.

    Text that came as bytes is recognised. Raises InvalidRequest or InvalidImage.
    """
    if is_base64 or isinstance(data, str):
        return from_base64(data)
    if is_address(data):
        raise InvalidImage("Nothing is fetched: send the image's bytes, not its address or path.")
    return from_base64_bytes(data) or data
