"""One image as the body of every request that is measured."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.networks import ROOT

IMAGE = ROOT / "imgs" / "cat.jpg"
BIG_SIZE = (4254, 2830)
"""Width and height of a 12-megapixel image with the cat's proportions."""


def write_payloads(folder: Path) -> None:
    """Write request bodies, one file each."""
    jpeg, image = IMAGE.read_bytes(), cat()
    text = base64.b64encode(jpeg).decode()
    pixels = np.asarray(image)
    json_bodies = {
        "cat.numpy.json": _infer("UINT8", list(pixels.shape), pixels.ravel().tolist(), "np"),
        "cat.base64.json": _infer("BYTES", [1], [text], "base64"),
    }
    for name, body in json_bodies.items():
        (folder / name).write_text(json.dumps(body))
    (folder / "cat.jpg").write_bytes(jpeg)
    (folder / "cat.numpy").write_bytes(pixels_header() + pixels.tobytes())
    (folder / "cat.triton").write_bytes(triton_header() + struct.pack("<I", len(jpeg)) + jpeg)
    big(image).save(folder / "big.jpg", quality=90)


def cat() -> Image.Image:
    """Return the benchmark's image."""
    return Image.open(IMAGE).convert("RGB")


def pixels_header() -> bytes:
    """Return the JSON before the pixels in a request with the binary tensor extension."""
    width, height = cat().size
    parameters = {"binary_data_size": width * height * 3}
    return _header("UINT8", [height, width, 3], parameters)


def triton_header() -> bytes:
    """Return the JSON before the JPEG in a request with Triton's binary extension."""
    parameters = {"binary_data_size": 4 + IMAGE.stat().st_size}
    return _header("BYTES", [1, 1], parameters, outputs=[{"name": "labels"}])


def big(image: Image.Image) -> Image.Image:
    """Return 12 megapixels with a camera's noise: a merely enlarged image decodes too easily."""
    enlarged = np.asarray(image.resize(BIG_SIZE, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, 3, enlarged.shape[:2]).astype(np.float32)
    return Image.fromarray(np.clip(enlarged + noise[..., None], 0, 255).astype(np.uint8))


def _infer(datatype: str, shape: list[int], data: list[Any], content_type: str) -> dict[str, Any]:
    tensor = {"name": "payload", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor | {"parameters": {"content_type": content_type}}]}


def _header(datatype: str, shape: list[int], parameters: dict[str, int], **more: Any) -> bytes:
    tensor = {"name": "payload", "datatype": datatype, "shape": shape, "parameters": parameters}
    return json.dumps({"inputs": [tensor], **more}).encode()
