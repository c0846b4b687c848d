"""What is served and what is sent: two checkpoints, and one picture in every form."""

import base64
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "imgs" / "cat.jpg"
CACHE = Path(tempfile.gettempdir()) / "tinyvit-benchmark"
"""Outlives a run, so that the checkpoint is made once."""

ARCHITECTURE = "tiny_vit_5m_224.dist_in22k"
BIG_SIZE = (4254, 2830)
"""Width and height of a 12-megapixel picture with the cat's proportions."""

MAKE_CHECKPOINT = f"""
import json, pathlib, sys, timm, torch
torch.manual_seed(0)
network = timm.create_model({ARCHITECTURE!r}, pretrained=False)
timm.models.save_for_hf(network, sys.argv[1], safe_serialization=True)
config = pathlib.Path(sys.argv[1], "config.json")
content = json.loads(config.read_text())
del content["model_args"]  # repeats what is there, and transformers passes both on
config.write_text(json.dumps(content, indent=2))
"""


def full_size() -> Path:
    """A folder with the full-size network and seeded weights: speed does not depend on training.

    Made in a process of its own, so that this one shares no page of torch with the servers.
    """
    folder = CACHE / ARCHITECTURE
    if not (folder / "model.safetensors").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            made = Path(draft) / "checkpoint"
            subprocess.run([sys.executable, "-c", MAKE_CHECKPOINT, str(made)], check=True)
            made.rename(folder)
    return folder


@dataclass(frozen=True)
class Network:
    """One of the networks that servers are compared on."""

    name: str
    description: str
    checkpoint: Callable[[], Path]

    def exported(self, folder: Path) -> Path:
        """The converted network below `folder`, exported by this runtime where it is not there."""
        out = folder / self.name
        if not out.exists():
            command = [
                sys.executable,
                "-m",
                "mlserver_timm.checkpoints.export",
                str(self.checkpoint()),
                str(out),
            ]
            subprocess.run(command, cwd=ROOT / "tinyvit", check=True, stdout=subprocess.DEVNULL)
        return out


TINYVIT = Network(
    "TinyViT-5M",
    f"{ARCHITECTURE}, 21841 classes, seeded weights",
    full_size,
)
SAMPLE = Network(
    "EfficientNet-Lite0",
    "the bundled sample, tf_efficientnet_lite0, 1000 classes",
    lambda: ROOT / "tinyvit" / "sample",
)
NETWORKS = (TINYVIT, SAMPLE)


def write_bodies(folder: Path) -> None:
    """Request bodies, one file each: cat.jpg, cat.numpy, cat.numpy.json, cat.base64.json,
    cat.litserve.json, cat.huggingface.json, cat.triton and big.jpg."""
    jpeg = PICTURE.read_bytes()
    image = picture()
    text = base64.b64encode(jpeg).decode()
    pixels = np.asarray(image)
    bodies = {
        "cat.numpy.json": _infer("payload", "UINT8", pixels.shape, pixels.ravel().tolist(), "np"),
        "cat.base64.json": _infer("payload", "BYTES", [1], [text], "base64"),
        "cat.huggingface.json": _infer("inputs", "BYTES", [1], [text], "pillow_image"),
        "cat.litserve.json": {"image_bytes": text},
    }
    for name, body in bodies.items():
        (folder / name).write_text(json.dumps(body))
    (folder / "cat.jpg").write_bytes(jpeg)
    (folder / "cat.numpy").write_bytes(pixels_header() + pixels.tobytes())
    (folder / "cat.triton").write_bytes(triton_header() + struct.pack("<I", len(jpeg)) + jpeg)
    big(image).save(folder / "big.jpg", quality=90)


def picture() -> Image.Image:
    """The cat."""
    return Image.open(PICTURE).convert("RGB")


def pixels_header() -> bytes:
    """The JSON that precedes the picture's pixels in a request of the binary tensor extension."""
    width, height = picture().size
    size = {"binary_data_size": width * height * 3}
    tensor = {"name": "payload", "datatype": "UINT8", "shape": [height, width, 3]}
    return json.dumps({"inputs": [tensor | {"parameters": size}]}).encode()


def triton_header() -> bytes:
    """The JSON that precedes the picture's length and bytes in a request of Triton's binary
    extension."""
    size = {"binary_data_size": 4 + PICTURE.stat().st_size}
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1, 1], "parameters": size}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "labels"}]}).encode()


def big(image: Image.Image) -> Image.Image:
    """12 megapixels with a camera's noise: merely enlarged, a picture is easier to decode than any
    that was taken."""
    enlarged = np.asarray(image.resize(BIG_SIZE, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, 3, enlarged.shape[:2]).astype(np.float32)
    return Image.fromarray(np.clip(enlarged + noise[..., None], 0, 255).astype(np.uint8))


def _infer(name: str, datatype: str, shape: Any, data: list[Any], content_type: str) -> Any:
    tensor = {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        "data": data,
        "parameters": {"content_type": content_type},
    }
    return {"inputs": [tensor]}
