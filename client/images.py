"""Images in every form that users have them in, as pixels or as the bytes of a file."""

import glob
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:  # sending files requires neither
    import numpy as np
    from PIL import Image


class ClientError(Exception):
    """An image, the server or the connection failed; the message is one sentence for the user."""


class ArgumentError(ClientError, ValueError):
    """The call itself is invalid; nothing was sent."""


ImageSource = Union[str, Path, bytes, "Image.Image", "np.ndarray"]
"""A path, the bytes of a file, an open image, or pixels `[H,W]` or `[H,W,C]`, integers 0 to 255."""
NamedImage = tuple[str, ImageSource | ClientError]
"""An image of the command line, or the reason why its name stands for none."""

URLS = ("http:/", "https:/")
HEIC = {".heic", ".heif"}
FORMATS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", *HEIC}
"""Image files in a folder. HEIC cannot be read: listing it gives the user an error to see."""


def find_images(names: Sequence[str]) -> Iterator[NamedImage]:
    """Yield name and image of each file that the names, folders and globs stand for.

    A folder or glob without images yields its name and an error.
    """
    for name in names:
        path = Path(name)
        if os.path.isdir(name):  # False where a Path raises: no permission, or too long a name
            inside = (p for p in path.rglob("*") if p.suffix.lower() in FORMATS)
            files = [str(p) for p in inside if os.path.isfile(p)]
        elif name and (os.path.exists(name) or not glob.has_magic(name) or name.startswith(URLS)):
            files = [name]
        else:
            files = glob.glob(name, recursive=True)
        yield from ((file, file) for file in sorted(files, key=Path))
        if not files:
            yield name, ClientError(f"No images found in '{name}'.")


def describe(image: ImageSource) -> str:
    """Return the name of an image in error messages."""
    return str(image) if isinstance(image, str | Path) else f"Image of type {type(image).__name__}"


def read_file(image: ImageSource) -> bytes:
    """Return the bytes of an image file, PNG for pixels; raises ClientError."""
    if not isinstance(image, str | Path | bytes | bytearray):
        return _png(read_pixels(image))
    name = describe(image)
    if name.startswith(URLS):
        raise ClientError(f"URLs are not fetched: download {name} and pass the file.")
    try:
        data = Path(image).read_bytes() if isinstance(image, str | Path) else bytes(image)
    except OSError as error:
        raise ClientError(f"Cannot read {name}: {error.strerror}.") from None
    if data[4:11] in (b"ftyphei", b"ftyphev") or Path(name).suffix.lower() in HEIC:
        raise ClientError(f"{name}: HEIC is not supported: convert it to JPEG.")
    return data


def _png(pixels: "np.ndarray") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_pixels(image: ImageSource) -> "np.ndarray":
    """Return upright uint8 pixels `[H,W,C]`, C = 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises ClientError for a file that Pillow cannot read and ArgumentError for invalid pixels.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray):
        return _checked(image)
    if isinstance(image, Image.Image):
        return _pixels_of(image, describe(image))
    if not isinstance(image, str | Path | bytes | bytearray):
        raise ArgumentError(f"{describe(image)} is neither path, bytes, PIL image nor NumPy array.")
    try:
        with Image.open(io.BytesIO(read_file(image))) as opened:
            return _pixels_of(opened, describe(image))
    except ClientError:
        raise
    except Exception:  # Pillow raises anything for damaged files
        raise ClientError(f"{describe(image)}: Pillow cannot read this image.") from None


def _pixels_of(image: "Image.Image", name: str) -> "np.ndarray":
    import numpy as np
    from PIL import ImageOps

    image.load()
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith(("F", "I")) or 0 in upright.size:
        mode = "RGBA" if upright.has_transparency_data else "RGB"
        return _checked(np.asarray(upright.convert(mode)))
    values = np.asarray(upright)
    low, high = values.min(), values.max()
    if upright.mode == "F" or (upright.mode == "I" and not (low >= 0 and 255 < high <= 65535)):
        raise ArgumentError(
            f"{name} has mode {upright.mode} with values from {low:g} to {high:g}, so white is "
            "unknown: send mode L (0 to 255) or I;16 (0 to 65535)."
        )
    return (values / 257 + 0.5).astype(np.uint8)[:, :, None]


def _checked(array: "np.ndarray") -> "np.ndarray":
    """Return the pixels as uint8 `[H,W,C]`; raise ArgumentError if their shape or type is wrong."""
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ArgumentError(f"Invalid shape {list(array.shape)}: use [H,W] or [H,W,1|3|4].")
    if not pixels.size:
        raise ArgumentError(f"Empty image: {pixels.shape[1]}x{pixels.shape[0]} pixels.")
    hint = ""
    if pixels.dtype.kind in "iu":
        if pixels.min() >= 0 and pixels.max() <= 255:
            return pixels.astype("uint8", copy=False)
        hint = f" from {pixels.min()} to {pixels.max()}"
    elif pixels.dtype.kind in "fb":
        hint = ": if they are from 0 to 1, pass (255 * pixels).round().astype('uint8')"
    raise ArgumentError(f"Pixels must be integers from 0 to 255, not {array.dtype}{hint}.")
