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
PHOTO = ROOT / "tests" / "photographs" / "rocket.jpg"
PHOTOS = {
    "photo-3mp.jpg": (2000, 1500),
    "photo-12mp.jpg": (4000, 3000),
    "photo-1mp.png": (1152, 864),
}
"""Width and height of the photographs, as phones and screenshots have them."""

GRAIN = 6.0
"""Standard deviation of a camera's noise, of 255: a merely enlarged image decodes too easily."""

QUALITY = 88
TRITON_HEADER_BYTES = 256


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
    for name, size in PHOTOS.items():
        photo(size).save(folder / name, quality=QUALITY)
    for name in ("cat.jpg", *PHOTOS):
        file = (folder / name).read_bytes()
        body = triton_header(len(file)) + struct.pack("<I", len(file)) + file
        (folder / f"{name}.triton").write_bytes(body)


def cat() -> Image.Image:
    """Return the benchmark's image."""
    return Image.open(IMAGE).convert("RGB")


def pixels_header() -> bytes:
    """Return the JSON before the pixels in a request with the binary tensor extension."""
    width, height = cat().size
    parameters = {"binary_data_size": width * height * 3}
    return _header("UINT8", [height, width, 3], parameters)


def triton_header(size: int) -> bytes:
    """Return the JSON before a file of `size` bytes in a request with Triton's binary extension."""
    parameters = {"binary_data_size": 4 + size}
    header = _header("BYTES", [1, 1], parameters, outputs=[{"name": "labels"}])
    return header.ljust(TRITON_HEADER_BYTES)


def photo(size: tuple[int, int]) -> Image.Image:
    """Return a photograph of this width and height with a camera's grain."""
    enlarged = Image.open(PHOTO).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, GRAIN, (size[1], size[0], 3)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(enlarged) + noise, 0, 255).astype(np.uint8))


def _infer(datatype: str, shape: list[int], data: list[Any], content_type: str) -> dict[str, Any]:
    tensor = {"name": "payload", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor | {"parameters": {"content_type": content_type}}]}


def _header(datatype: str, shape: list[int], parameters: dict[str, int], **more: Any) -> bytes:
    tensor = {"name": "payload", "datatype": datatype, "shape": shape, "parameters": parameters}
    return json.dumps({"inputs": [tensor], **more}).encode()
