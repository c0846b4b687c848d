"""JPEG: baseline and progressive."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlserver_timm.images.headers.base import ImageHeader, Parts, Reader, TooCostly
from mlserver_timm.images.headers.exif import orientation

DHT, DAC, EOI, SOS, DQT, DNL, DRI, APP0, APP1, APP14, COM = (
    *(0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD),
    *(0xE0, 0xE1, 0xEE, 0xFE),
)
FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive; no viewer shows the others."""
OTHER_FRAMES = set(range(0xC3, 0xD0)) - {DHT, 0xC8, DAC}
KEPT = FRAMES | {DQT, DHT, DRI, APP0, APP14}
"""Segments that pixels depend on; JFIF's and Adobe's tell the colour space."""
BETWEEN_SCANS = {SOS, DQT, DHT, DAC, DNL, DRI, COM, *range(APP0, 0xF0)}
"""Segments that libjpeg reads or steps over behind the first scan; any other marker stops it."""

MAX_SCANS = 100
"""Encoders make 10 of a progressive picture, mozjpeg up to 17."""

MAX_SCAN_WORK = 2_000_000_000
"""Scans times coefficients: each scan passes over all of them, in 0.2 to 1 ns each, even where it
says nothing in 125 bytes for a million blocks."""

MAX_JUNK = 4096
"""Bytes between segments that are none. Pillow steps over them one by one, in Python."""

NEXT_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""Restarts and those below begin no segment, and libjpeg searches on behind them."""

FILL = b"\xff" * 2**16
"""Fill bytes that no encoder makes: of each 64 KiB that it gets, libjpeg reads all before again."""

SLICE = 2**18  # Python's other threads get a turn between slices


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    samplings: list[tuple[int, int]]
    """Of each component, horizontal and vertical."""
    progressive: bool

    @property
    def coefficients(self) -> int:
        """In all components, whole units of 8x8 blocks."""
        most_across = max(across for across, _ in self.samplings)
        most_down = max(down for _, down in self.samplings)
        units = -(-self.width // (8 * most_across)) * -(-self.height // (8 * most_down))
        return units * 64 * sum(across * down for across, down in self.samplings)


def accepts(data: bytes) -> bool:
    """Whether it begins as a JPEG file."""
    return data.startswith(b"\xff\xd8\xff")


def read(data: bytes) -> ImageHeader:
    """The header of a JPEG file; a coefficient takes 2 bytes where scans are many."""
    frame, exif, kept = None, None, [data[:2]]
    for marker, start, end in _segments(data):
        body = data[start + 4 : end]
        if marker in FRAMES and frame is None:
            frame = _frame(marker, body)
        elif marker in FRAMES | OTHER_FRAMES:
            raise ValueError("two frames, or one of a kind that no viewer shows")
        elif marker == APP1 and exif is None and body.startswith(b"Exif\0\0"):
            exif = body
        if marker in KEPT:
            kept.append(data[start:end])
    if frame is None or marker != SOS:
        raise ValueError("no frame")
    kept.append(data[start : _end_of_scans(data, end, frame.coefficients)])
    in_scan = data[start + 4]
    many_scans = frame.progressive or in_scan < len(frame.samplings)
    components = len(frame.samplings)
    return ImageHeader(
        format="JPEG",
        width=frame.width,
        height=frame.height,
        pixel_bytes=1 if components == 1 else 4,
        file=b"".join(kept),
        decoder_bytes=2 * frame.coefficients if many_scans else 0,
        is_rgb=components == 3,
        orientation=orientation(exif or b""),
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan's."""
    position, junk, parts = 2, 0, Parts("segments")
    while True:
        parts.add()
        start = _marker(data, position)
        junk += start - position
        if junk > MAX_JUNK:
            raise ValueError("junk between segments")
        marker, end = data[start + 1], _segment_end(data, start)
        yield marker, start, end
        if marker in (SOS, EOI):
            return
        position = end


def _segment_end(data: bytes, start: int) -> int:
    """Of the segment whose marker is at `start`; the two bytes of its length are always there."""
    return start + 2 + max(2, int(Reader(data, ">", start + 2).number("H")))


def _marker(data: bytes, position: int) -> int:
    """Where the next marker begins."""
    match = NEXT_MARKER.search(data, position, position + 2 * MAX_JUNK)
    if match is None:
        raise ValueError("no marker")
    return match.start()


def _frame(marker: int, body: bytes) -> _Frame:
    reader = Reader(body, ">")
    _, height, width, components = reader.numbers("BHHB")
    samplings = [divmod(reader.numbers("BBB")[1], 16) for _ in range(components)]
    if components not in (1, 3, 4) or not all(1 <= n <= 4 for pair in samplings for n in pair):
        raise ValueError("no components as viewers know them")
    return _Frame(width, height, samplings, marker == 0xC2)


def _end_of_scans(data: bytes, position: int, coefficients: int) -> int:
    """Where libjpeg stops to read, having begun with the first scan's data at `position`. The scans
    up to there are counted; raises TooCostly."""
    scans, parts = 1, Parts("segments")
    most = min(MAX_SCANS, max(1, MAX_SCAN_WORK // max(1, coefficients)))
    while (start := _marker_in_scan(data, position)) is not None:
        if data[start + 1] not in BETWEEN_SCANS:  # the end of the image, or what is an error there
            return start + 2
        parts.add()
        scans += data[start + 1] == SOS
        if scans > most:
            raise TooCostly(
                f"The JPEG image has more than {most} scans, which is too many for its size; "
                f"a progressive picture has about 10."
            )
        position = _segment_end(data, start)
    return len(data)


def _marker_in_scan(data: bytes, position: int) -> int | None:
    """Where the next marker begins that is not part of a scan's data."""
    while position < len(data):
        match = NEXT_MARKER.search(data, position, position + SLICE)
        if match is not None:
            return match.start()
        if data.find(FILL, position, position + SLICE) >= 0:
            raise ValueError("junk in a scan")
        position += SLICE - 1
    return None
