"""The one thing that is read of EXIF: how the camera was held."""

import struct

ORIENTATION = 0x0112
SHORT = 3
MAX_TAGS = 1000
"""That are looked at. Pillow reads all of them and warns of each broken one, in the log."""


def orientation(exif: bytes) -> int:
    """1 to 8; 1 where nothing of that is said, or the EXIF data is broken."""
    try:
        return _orientation(exif.removeprefix(b"Exif\0\0"))
    except struct.error:
        return 1


def _orientation(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if not order:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (tags,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * min(tags, MAX_TAGS), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == ORIENTATION:
            return value if kind == SHORT and count == 1 and 1 <= value <= 8 else 1
    return 1
