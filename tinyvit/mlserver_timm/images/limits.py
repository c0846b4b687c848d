"""Memory and CPU time that decoding an image takes, and which images are expensive."""

MEBIBYTE = 2**20

STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""Bytes of a decoded pixel in Pillow, by the image's mode; 4 in all other modes."""

STORED_OVERHEAD = 1.08
"""Factor: a decoded image also has row pointers, and Pillow allocates it in blocks of 16 MiB."""

DECODER_BYTES = {"WEBP": 11.0, "AVIF": 8.5, "TIFF": 3.0}
"""Additional bytes per pixel in a C decoder, by format. Measured with images of 0.1 and 12
megapixels in each mode, as the smallest address space in which they can be decoded, plus 5 %."""

COEFFICIENT_BYTES = 2
"""Bytes per coefficient of a progressive JPEG; libjpeg keeps all of them until the last scan."""

OVERHEAD = 8 * MEBIBYTE
"""Bytes for any image: buffers, resized parts, stacks of threads."""

READ_IN_PIECES = {"JPEG", "PNG", "GIF", "BMP", "TIFF", "array"}
"""Formats that Pillow reads piece by piece; it holds a second copy of other files."""

EXPENSIVE_PIXELS = 2_000_000
EXPENSIVE_BYTES = 4_000_000
"""Larger images and files are expensive: they use a limited number of decoders."""

CPU_SECONDS, CPU_SECONDS_A_PIXEL = 0.5, 200e-9
"""Limit on the CPU time of an image: seconds, and seconds per pixel. Ordinary images take 15 to
58 ns per pixel."""


def memory_for_file(size: int, kind: str = "") -> int:
    """Return the bytes of memory that it takes to receive and open a file of `size` bytes.

    Pillow reads files of most kinds piece by piece, and the others whole; `kind` may be unknown.
    """
    return OVERHEAD + size * (1 if kind in READ_IN_PIECES else 2)


def memory_for_image(kind: str, mode: str, width: int, height: int, coefficients: float = 0) -> int:
    """Return the bytes of memory that it takes to decode, turn and resize an opened image.

    `kind` is Pillow's format, `mode` its mode, and `coefficients` how many a progressive JPEG has
    for each pixel.
    """
    stored = STORED_BYTES.get(mode, 4) * STORED_OVERHEAD
    decoder = DECODER_BYTES.get(kind, 0) + COEFFICIENT_BYTES * coefficients
    return int((stored + decoder) * width * height)


def is_expensive(width: int, height: int, size: int, coefficients: float = 0) -> bool:
    """Return whether an image, in a file of `size` bytes, is expensive to decode."""
    return width * height > EXPENSIVE_PIXELS or size > EXPENSIVE_BYTES or coefficients > 0


def cpu_seconds(width: int, height: int) -> float:
    """Return the CPU seconds within which an image must be decoded and resized."""
    return CPU_SECONDS + CPU_SECONDS_A_PIXEL * width * height
