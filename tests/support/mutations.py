"""Mutated files, and the responses that are allowed."""

import contextlib
import random
import struct
import zlib
from typing import Any

import requests
from hypothesis import strategies as st

from tests.support.clients import FORMATS, assert_sentence, image_file


def assert_answered(response: requests.Response) -> None:
    """Assert status 200, or 4xx with a sentence."""
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text[:500])
    assert_sentence(response.json()["error"])


def files() -> list[bytes]:
    """Return a file of each format and mode that decoders treat differently."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *[(kind, "RGB", {}) for kind in FORMATS],
        *[("PNG", mode, {}) for mode in ("1", "L", "P", "LA", "RGBA", "I;16")],
        ("PNG", "P", {"transparency": 3}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {"transparency": 1}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
    ]
    images = []
    for kind, mode, save in kinds:
        with contextlib.suppress(OSError, ValueError):  # this Pillow does not write the mode
            images.append(image_file(kind, (40, 32), mode, **save))
    return images


seeds = st.integers(0, 2**32)


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Change, drop, insert, repeat or cut off a few bytes, mostly near the beginning."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 3, 8))):
        at = min(int(generator.expovariate(1 / 60)), len(changed) - 1)
        how = generator.randrange(6)
        if how == 0:
            changed[at] = generator.randrange(256)
        elif how == 1:
            changed[at] = generator.choice((0, 1, 127, 128, 255))
        elif how == 2:
            del changed[at + 1 : at + generator.randrange(2, 6)]
        elif how == 3:
            changed[at:at] = generator.randbytes(generator.randrange(1, 6))
        elif how == 4:
            start = generator.randrange(len(changed))
            changed[at:at] = changed[start : start + generator.randrange(1, 9)]
        else:
            del changed[generator.randrange(1, len(changed) + 1) :]
    return with_checksums(bytes(changed)) if generator.random() < 0.7 else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that decoders read its chunks."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            return bytes(out + data[at:])
        out += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(out)
