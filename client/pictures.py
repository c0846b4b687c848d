"""A picture in every form that people have it in, as pixels or as a file's bytes."""

import glob
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:  # encoded images are sent without them
    import numpy as np
    from PIL import Image

Picture = Union[str, Path, bytes, "Image.Image", "np.ndarray"]
"""A path, a file's bytes, an open image, or pixels `[H,W]` or `[H,W,C]`, integers 0 to 255."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
"""Of the files in a folder that are pictures."""

MODULES = {"pillow": "PIL", "grpcio": "grpc"}
"""What packages are imported as, where that is another name."""

DEEPEST = 65535
"""The largest value of 16 bits."""


class ClientError(Exception):
    """One sentence for people: the picture, the server or the connection is not as it should be."""


class ArgumentError(ClientError, ValueError):
    """The call is wrong: no server would answer it."""


@dataclass(frozen=True)
class NoPicture:
    """A folder or glob in which there is no picture."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def error(self) -> ClientError:
        """Says so."""
        return ClientError(f"There is no picture in '{self.name}'.")


def find_pictures(names: Sequence[str]) -> list[Path | NoPicture]:
    """The files that names, folders and globs stand for."""
    return [picture for name in names for picture in _expand(name)]


def _expand(name: str) -> Sequence[Path | NoPicture]:
    path = Path(name)
    if name and path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif name and (path.exists() or not glob.has_magic(name)):
        return [path]
    else:
        found = sorted(Path(match) for match in glob.glob(name, recursive=True))
    return found or [NoPicture(name)]


def need(what: str, otherwise: str, *packages: str) -> None:
    """Raises ArgumentError where one of the packages is missing."""
    for package in packages:
        try:
            import_module(MODULES.get(package, package))
        except ImportError:
            raise ArgumentError(
                f"{what} cannot be had without {package}, which is not installed: "
                f"pip install {' '.join(packages)}; {otherwise}."
            ) from None


def check_pixels() -> None:
    """Raises ArgumentError where the packages are missing that decode pictures."""
    need("Pixels", "the encoding 'image' sends files without it", "pillow", "numpy")


def name_of(picture: Picture) -> str:
    """What it is called in front of people."""
    if isinstance(picture, bytes | bytearray):
        return "The bytes"
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
    check_pixels()
    from PIL import Image

    if isinstance(picture, str | Path | bytes | bytearray):
        return _decoded(picture)
    return _pixels(picture, picture) if isinstance(picture, Image.Image) else _checked(picture)


def _decoded(picture: str | Path | bytes) -> "np.ndarray":
    from PIL import Image

    file = io.BytesIO(file_of(picture))
    try:
        with Image.open(file) as image:
            image.load()
            return _pixels(image, picture)
    except ClientError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        is_or_are = "are" if isinstance(picture, bytes | bytearray) else "is"
        raise ClientError(f"{name_of(picture)} {is_or_are} no image that can be read.") from None


def _pixels(image: "Image.Image", picture: Picture) -> "np.ndarray":
    """Of `picture`, as which the image is told of."""
    import numpy as np
    from PIL import ImageOps

    _check_size(*image.size)
    upright = ImageOps.exif_transpose(image)
    _check_range(upright, picture)
    if upright.mode.startswith("I"):  # 16 bits a pixel
        return (np.asarray(upright) / 257 + 0.5).astype(np.uint8)[:, :, None]
    if upright.has_transparency_data:
        return np.asarray(upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if not width * height:
        raise ArgumentError(f"A picture of {width}x{height} pixels has nothing to see.")


def _check_range(image: "Image.Image", picture: Picture) -> None:
    """Raises ArgumentError where it is not known which values are black and white."""
    import numpy as np

    if image.mode not in ("F", "I"):
        return
    values = np.asarray(image)
    least, most = values.min(), values.max()
    if image.mode == "I" and least >= 0 and 255 < most <= DEEPEST:
        return  # as Pillow opens some files of 16 bits
    raise ArgumentError(
        f"{name_of(picture)} has the mode {image.mode} and values from {least:g} to {most:g}, of "
        f"which none is known to be white: send mode L, 0 to 255, or I;16, 0 to {DEEPEST}."
    )


def _checked(array: Any) -> "np.ndarray":
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ArgumentError(
            f"A picture is a path, bytes, a PIL image or a NumPy array, not {type(array).__name__}."
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ArgumentError(
            f"One picture is [H,W] or [H,W,C] with C 1, 3 or 4, not {list(array.shape)}."
        )
    _check_size(array.shape[1], array.shape[0])
    return _uint8(array)


def _uint8(array: "np.ndarray") -> "np.ndarray":
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iu":
        least, most = array.min(), array.max()
        if least >= 0 and most <= 255:
            return array.astype(np.uint8)
        hint = f" from {least} to {most}."
    elif array.dtype.kind == "b":
        hint = "; where yours are black and white: 255 * pixels.astype('uint8')."
    elif array.dtype.kind == "f":
        hint = "; where yours go from 0 to 1: (255 * pixels).round().astype('uint8')."
    else:
        hint = "."
    raise ArgumentError(f"Pixels are uint8, 0 to 255, not {array.dtype}{hint}")
