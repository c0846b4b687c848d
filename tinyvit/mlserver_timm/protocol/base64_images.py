"""Base64 text to the bytes of an image file."""

import base64
import io
import re

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images.sources import FORMATS

SLICE = 2**20
"""Characters decoded at once, a multiple of 4. Decoding 60 MB in one call would hold the GIL for a
quarter of a second."""

DATA_URL = re.compile(rb"data:[\w./+-]*(;[\w=.-]+)*;base64,", re.IGNORECASE)
BASE64_TEXT = re.compile(rb"[\w+/=\s-]+")

ADDRESS = re.compile(rb"\w[\w+.-]*://|www\.\w")
FILE_NAME = re.compile(rb"(.*[/\\])?[^/\\]+\.\w{2,5}([?#].*)?$", re.DOTALL)
MAX_FILE_NAME = 300
"""Characters; a longer text is no path."""

STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
WHITESPACE = b" \t\r\n\v\f"

EMPTY = f"The image is empty; send the bytes of a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
NOT_BASE64 = "The image is not valid base64: send the base64 text of an image file's bytes."
NOT_FETCHED = (
    "The image is an address or a path, and nothing is fetched: send the bytes of the image, in "
    "JSON as base64."
)


def decode_base64(text: bytes | memoryview) -> bytes:
    """Return the bytes of base64 text in either alphabet, with or without padding.

    The text may have line breaks or be a `data:` URL. Raises ValueError if it is not base64.
    """
    match = DATA_URL.match(text[:MAX_FILE_NAME])
    rest, is_padded = b"", False
    with io.BytesIO() as decoded:
        for at in range(match.end() if match else 0, len(text), SLICE):
            piece = bytes(text[at : at + SLICE]).translate(STANDARD_ALPHABET, WHITESPACE)
            characters, padding, behind = piece.partition(b"=")
            if is_padded and characters or behind.strip(b"="):
                raise ValueError("padding in the middle")
            is_padded = is_padded or bool(padding)
            rest += characters
            whole = len(rest) - len(rest) % 4
            decoded.write(base64.b64decode(rest[:whole], validate=True))
            rest = rest[whole:]
        decoded.write(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
        return decoded.getvalue()


def base64_error(text: bytes) -> InvalidRequest:
    """Return the error for text that is not base64."""
    return InvalidRequest(NOT_FETCHED if is_address(text) else NOT_BASE64)


def file_bytes(data: bytes) -> bytes:
    """Return the image file that was sent as bytes: `data` itself, or what its base64 text holds.

    Raises InvalidImage if the data is empty or an address.
    """
    if not data:
        raise InvalidImage(EMPTY)
    if is_data_url(data) or BASE64_TEXT.fullmatch(data[:64]):
        try:
            return decode_base64(data)
        except ValueError:
            pass
    if is_address(data):
        raise InvalidImage(NOT_FETCHED)
    return data


def is_data_url(data: bytes) -> bool:
    """Return whether the bytes are text that begins as a `data:` URL in base64."""
    return DATA_URL.match(data[:MAX_FILE_NAME]) is not None


def is_address(data: bytes) -> bool:
    """Return whether the bytes are an address or a path, in place of an image."""
    start = data[:MAX_FILE_NAME].strip()
    return bool(ADDRESS.match(start) or len(data) < MAX_FILE_NAME and FILE_NAME.match(start))
