"""Images in many encodings, and assertions that the answers are timm's."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from tests.support.clients import CAT, Server, encoded, infer, tensor
from tests.support.timm_reference import timm_reference


def photo(width: int, height: int, path: Any = CAT) -> np.ndarray:
    """Return a photograph as uint8 `[H,W,3]`."""
    return np.asarray(Image.open(path).convert("RGB").resize((width, height)))


def pixels(array: np.ndarray, datatype: str = "UINT8") -> dict[str, Any]:
    """Return an array as an input of a JSON request."""
    return tensor(array.ravel().tolist(), list(array.shape), datatype)


def answers(server: Server, request: Any) -> list[tuple[list[str], list[float]]]:
    """Return the labels and scores of each image of a request."""
    response = infer(server, request)
    assert response.status_code == 200, response.text
    labels, scores = response.json()["outputs"]
    assert (labels["name"], labels["datatype"]) == ("labels", "BYTES")
    assert (scores["name"], scores["datatype"]) == ("scores", "FP32")
    assert labels["shape"] == scores["shape"]
    count, k = labels["shape"]
    assert len(labels["data"]) == len(scores["data"]) == count * k, labels["shape"]
    return [(labels["data"][i : i + k], scores["data"][i : i + k]) for i in range(0, count * k, k)]


def assert_timms_answers(server: Server, request: Any, *images: Image.Image, k: int = 5) -> None:
    """Assert that the answer is timm's for these images, in this order."""
    for image, (labels, scores) in zip(images, answers(server, request), strict=True):
        assert len(labels) == k, labels
        timm_reference().assert_matches(image, labels, scores)


@functools.cache
def files() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Return a file of each kind, and its pixels if Pillow alone does not give them."""
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
        "JPEG": (encoded(rgb, "JPEG", quality=90), None),
        "JPEG grey": (encoded(grey, "JPEG"), None),
        "JPEG CMYK": (encoded(rgb.convert("CMYK"), "JPEG"), None),
        "JPEG progressive": (encoded(rgb, "JPEG", progressive=True), None),
        "JPEG cat": (CAT.read_bytes(), None),
        "PNG": (encoded(rgb, "PNG"), colour),
        "PNG grey": (encoded(grey, "PNG"), None),
        "PNG RGBA": (encoded(rgba, "PNG"), over_white),
        "PNG LA": (
            encoded(Image.fromarray(np.dstack([np.asarray(grey), holes])), "PNG"),
            np.dstack([grey_over_white] * 3),
        ),
        "PNG palette": (encoded(palette, "PNG"), shown),
        "PNG palette transparent": (encoded(palette, "PNG", transparency=0), without_first),
        "PNG 1 bit": (encoded(grey.convert("1"), "PNG"), None),
        "PNG 16 bit": (encoded(Image.fromarray(deep), "PNG"), np.dstack([np.asarray(grey)] * 3)),
        "WebP lossy": (encoded(rgb, "WEBP"), None),
        "WebP lossless": (encoded(rgb, "WEBP", lossless=True), colour),
        "WebP alpha": (encoded(rgba, "WEBP", **lossless), over_white),
        "WebP animated": (encoded(rgb, "WEBP", **lossless, **animation), colour),
        "GIF": (encoded(palette, "GIF"), shown),
        "GIF animated": (
            encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
            shown,
        ),
        "GIF transparent": (encoded(palette, "GIF", transparency=0), without_first),
        "BMP": (encoded(rgb, "BMP"), colour),
        "BMP grey": (encoded(grey, "BMP"), None),
    }


def shows(kind: str) -> Image.Image:
    """Return the image that a viewer shows of a kind of file."""
    file, expected = files()[kind]
    if expected is not None:
        return Image.fromarray(expected)
    return Image.open(io.BytesIO(file)).convert("RGB")
