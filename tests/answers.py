"""Images in many encodings, and whether the answers are timm's."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from clients import (
    COFFEE,
    infer,
    tensor,
)
from local import LocalServer
from truth import truth

CAT = COFFEE.with_name("cat.jpg")


CLASSES = 200


RNG = np.random.default_rng(1)


def photo(width: int, height: int, path: Any = CAT) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((width, height)))


def pixels(array: np.ndarray, datatype: str = "UINT8") -> dict[str, Any]:
    return tensor(array.ravel().tolist(), list(array.shape), datatype)


def answers(server: LocalServer, request: Any) -> list[tuple[list[str], list[float]]]:
    """Labels and scores of each image."""
    response = infer(server, request)
    assert response.status_code == 200, response.text
    labels, scores = response.json()["outputs"]
    assert (labels["name"], labels["datatype"]) == ("labels", "BYTES")
    assert (scores["name"], scores["datatype"]) == ("scores", "FP32")
    assert labels["shape"] == scores["shape"]
    count, k = labels["shape"]
    assert len(labels["data"]) == len(scores["data"]) == count * k
    return [(labels["data"][i : i + k], scores["data"][i : i + k]) for i in range(0, count * k, k)]


def assert_true(server: LocalServer, request: Any, *pictures: Image.Image, k: int = 5) -> None:
    """That the answer is timm's for these pictures, in this order."""
    told = answers(server, request)
    assert len(told) == len(pictures)
    for picture, (labels, scores) in zip(pictures, told, strict=True):
        assert len(labels) == k
        truth().assert_tells(picture, labels, scores)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def files() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Each kind of file, with the pixels that it shows where Pillow alone does not say so."""
    colour = photo(70, 50)
    rgb, grey = Image.fromarray(colour), Image.fromarray(colour).convert("L")
    holes = np.where(np.arange(70) % 20 < 10, 255, 0).astype(np.uint8)[None].repeat(50, axis=0)
    over_white = np.where(holes[:, :, None], colour, 255).astype(np.uint8)
    grey_over_white = np.where(holes, np.asarray(grey), 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([colour, holes]))
    palette = rgb.quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    without_first = np.where((np.asarray(palette) == 0)[:, :, None], 255, shown).astype(np.uint8)
    deep = (np.asarray(grey).astype(np.uint16) * 257).astype(np.uint16)
    others = [rgb.rotate(90), rgb.rotate(180)]
    animation = {"save_all": True, "append_images": others, "duration": 100}
    lossless = {"lossless": True, "exact": True}
    return {
        "JPEG": (saved(rgb, "JPEG", quality=90), None),
        "JPEG grey": (saved(grey, "JPEG"), None),
        "JPEG CMYK": (saved(rgb.convert("CMYK"), "JPEG"), None),
        "JPEG progressive": (saved(rgb, "JPEG", progressive=True), None),
        "JPEG cat": (CAT.read_bytes(), None),
        "PNG": (saved(rgb, "PNG"), colour),
        "PNG grey": (saved(grey, "PNG"), None),
        "PNG RGBA": (saved(rgba, "PNG"), over_white),
        "PNG LA": (
            saved(Image.fromarray(np.dstack([np.asarray(grey), holes])), "PNG"),
            np.dstack([grey_over_white] * 3),
        ),
        "PNG palette": (saved(palette, "PNG"), shown),
        "PNG palette transparent": (saved(palette, "PNG", transparency=0), without_first),
        "PNG 1 bit": (saved(grey.convert("1"), "PNG"), None),
        "PNG 16 bit": (saved(Image.fromarray(deep), "PNG"), np.dstack([np.asarray(grey)] * 3)),
        "WebP lossy": (saved(rgb, "WEBP"), None),
        "WebP lossless": (saved(rgb, "WEBP", lossless=True), colour),
        "WebP alpha": (saved(rgba, "WEBP", **lossless), over_white),
        "WebP animated": (saved(rgb, "WEBP", **lossless, **animation), colour),
        "GIF": (saved(palette, "GIF"), shown),
        "GIF animated": (
            saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
            shown,
        ),
        "GIF transparent": (saved(palette, "GIF", transparency=0), without_first),
        "BMP": (saved(rgb, "BMP"), colour),
        "BMP grey": (saved(grey, "BMP"), None),
    }


def shows(kind: str) -> Image.Image:
    file, expected = files()[kind]
    if expected is not None:
        return Image.fromarray(expected)
    return Image.open(io.BytesIO(file)).convert("RGB")
