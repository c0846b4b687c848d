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
def files() -> dict[str, tuple[bytes, Image.Image]]:
    """Return a file of some kinds, and the image that a viewer shows."""
    colour = photo(70, 50)
    holes = np.where(np.arange(70) % 20 < 10, 255, 0).astype(np.uint8)[None].repeat(50, axis=0)
    rgba = Image.fromarray(np.dstack([colour, holes]))
    over_white = np.where(holes[:, :, None], colour, 255).astype(np.uint8)
    palette = Image.fromarray(colour).quantize(16)
    others = [palette.rotate(90)]
    webp = encoded(Image.fromarray(colour), "WEBP")
    return {
        "JPEG": (CAT.read_bytes(), Image.open(CAT).convert("RGB")),
        "PNG with alpha": (encoded(rgba, "PNG"), Image.fromarray(over_white)),
        "WebP": (webp, Image.open(io.BytesIO(webp)).convert("RGB")),
        "animated GIF": (
            encoded(palette, "GIF", save_all=True, append_images=others),
            palette.convert("RGB"),
        ),
    }
