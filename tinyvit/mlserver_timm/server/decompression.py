"""gzip and deflate, unpacked within a bound."""

import zlib

from mlserver_timm.errors import BodyTooLarge, InvalidRequest

WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Of zlib, for each Content-Encoding."""

MAX_RATIO = 100
"""Of a body to what it was packed into: pixels as JSON are packed to a tenth, hardly ever to a
hundredth."""

FREE_BYTES = 16 * 2**20
"""To which anything may be unpacked; a picture of one colour is packed to a thousandth."""


ANY = 47
"""The window of zlib for gzip and deflate, whichever it is."""


def in_proportion(size: int, most: int, free: int = FREE_BYTES) -> int:
    """To how many bytes so many may be unpacked: to `free` in any case, and at most to `most`."""
    return min(most, max(free, MAX_RATIO * size))


def unpack(packed: bytes, encoding: str, limit: int) -> bytes:
    """What is in a body; raises BodyTooLarge where that is more than `limit` bytes, and
    InvalidRequest where the body is cut off, goes on behind its end or is none."""
    unpacker = zlib.decompressobj(WINDOWS[encoding])
    try:
        body = unpacker.decompress(packed, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"The body is not valid {encoding}.") from None
    if len(body) > limit:
        raise BodyTooLarge(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest(f"The body is not valid {encoding}.")
    return body


def beginning(packed: bytes, size: int) -> bytes:
    """The first `size` bytes of what is packed with gzip or deflate, as far as they are there."""
    try:
        return zlib.decompressobj(ANY).decompress(packed, size)
    except zlib.error:
        return b""
