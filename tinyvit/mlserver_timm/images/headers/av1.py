"""AV1 streams, as far as AVIF needs them: how large are the frames in one, and how many are they?

The AV1 specification (aomediacodec.github.io/av1-spec) has the syntax in chapter 5, by the names
used here.
"""

from dataclasses import dataclass

from mlserver_timm.images.headers.base import Parts, Reader, TooCostly

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
MAX_FRAMES = 4
"""Layers of a still picture. Frames that are not shown cost as much as those that are, and each
may have a sequence header of its own."""


@dataclass(frozen=True)
class Stream:
    """The largest frame of a stream."""

    width: int
    height: int
    planes_bytes: int
    """Of the decoded frames in memory, at most."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends too early")
        return self._bits >> self._left & ((1 << count) - 1)


def read(data: bytes, parts: Parts) -> Stream:
    """The stream of one item, whose units are counted among the file's parts; raises TooCostly, or
    ValueError where it is none."""
    reader, headers, frames = Reader(data, ">"), [], 0
    while not reader.at_end:
        parts.add()
        kind, payload = _obu(reader)
        if kind == SEQUENCE_HEADER:
            headers.append(_sequence_header(_Bits(payload[:64])))
        frames += kind in (FRAME, FRAME_HEADER)
        if max(frames, len(headers)) > MAX_FRAMES:
            raise TooCostly(f"The AVIF image has more than {MAX_FRAMES} frames or layers.")
    if not headers:
        raise ValueError("no sequence header")
    return Stream(
        width=max(stream.width for stream in headers),
        height=max(stream.height for stream in headers),
        planes_bytes=max(1, frames) * max(stream.planes_bytes for stream in headers),
    )


def _obu(reader: Reader) -> tuple[int, bytes]:
    head = reader.number("B")
    reader.skip(head >> 2 & 1)
    size = _leb128(reader) if head & 2 else len(reader.data) - reader.position
    kind = head >> 3 & 15
    if kind != SEQUENCE_HEADER:
        reader.skip(size)
        return kind, b""
    return kind, reader.take(size)


def _leb128(reader: Reader) -> int:
    value = 0
    for place in range(8):
        byte = reader.number("B")
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    raise ValueError("a size that never ends")


def _sequence_header(bits: _Bits) -> Stream:
    """With two bytes a sample, since depth is told further on: 4:2:0 in profile 0, else 4:4:4."""
    profile, _, reduced = bits.take(3), bits.take(1), bits.take(1)  # still_picture
    if reduced:
        bits.take(5)  # seq_level_idx
    else:
        _skip_operating_points(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(across) + 1, bits.take(down) + 1
    largest = width * height if reduced else 2 ** (across + down)  # frames may give their own
    return Stream(width, height, largest * (3 if profile == 0 else 6))


def _skip_operating_points(bits: _Bits) -> None:
    decoder_model = delay_bits = 0
    if bits.take(1):  # timing_info
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            _skip_uvlc(bits)
        decoder_model = bits.take(1)
        if decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)  # operating_point_idc
        if bits.take(5) > 7:  # seq_level_idx
            bits.take(1)
        if decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)


def _skip_uvlc(bits: _Bits) -> None:
    zeros = 0
    while not bits.take(1):
        zeros += 1
    if zeros < 32:
        bits.take(zeros)
