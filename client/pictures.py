"""A picture in every form that people have it in, as pixels or as a file's bytes."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:  # encoded images are sent without them
    import numpy as np
    from PIL import Image

Picture = Union[str, Path, bytes, "Image.Image", "np.ndarray"]
"""A path, a file's bytes, an open image, or uint8 pixels `[H,W]` or `[H,W,C]`."""


class ClientError(Exception):
    """One sentence for people: the picture, the server or the connection is not as it should be."""


class ArgumentError(ClientError, ValueError):
    """The call is wrong: no server would answer it."""


def name_of(picture: Picture) -> str:
    """What it is called in front of people."""
    return str(picture) if isinstance(picture, str | Path) else f"The {type(picture).__name__}"


def file_of(picture: Picture) -> bytes:
    """An image file: as it is, or PNG where there was none; raises ClientError."""
    if isinstance(picture, bytes | bytearray):
        return bytes(picture)
    if isinstance(picture, str | Path):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise ClientError(f"{picture} cannot be read: {error.strerror}.") from None
    from PIL import Image

    array = pixels_of(picture)
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(picture: Picture) -> "np.ndarray":
    """uint8 `[H,W,C]`, upright, with C 1 (grey), 3 (RGB) or 4 (RGBA); raises ClientError."""
    from PIL import Image

    if isinstance(picture, Image.Image):
        return _pixels(picture)
    if not isinstance(picture, str | Path | bytes | bytearray):
        return _checked(picture)
    try:
        with Image.open(io.BytesIO(file_of(picture))) as image:
            return _pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ClientError(f"{name_of(picture)} is no image that can be read.") from None


def _pixels(image: "Image.Image") -> "np.ndarray":
    import numpy as np
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel
        return (np.asarray(upright) / 257 + 0.5).astype(np.uint8)[:, :, None]
    if upright.has_transparency_data:
        return np.asarray(upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def _checked(array: Any) -> "np.ndarray":
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ArgumentError(
            f"A picture is a path, bytes, a PIL image or a NumPy array, not {type(array).__name__}."
        )
    if array.dtype != np.uint8:
        raise ArgumentError(
            f"Pixels are uint8, 0 to 255, not {array.dtype}; "
            "where yours go from 0 to 1: (255 * pixels).round().astype('uint8')."
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ArgumentError(
            f"One picture is [H,W] or [H,W,C] with C 1, 3 or 4, not {list(array.shape)}."
        )
    return array
