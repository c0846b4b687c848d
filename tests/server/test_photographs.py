"""Photographs with a class of ImageNet-1k are named rightly, by every encoding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from client.local import LocalServer
from tests.support.answers import pixels
from tests.support.binary_tensors import binary_tensor, elements, send
from tests.support.clients import (
    CAT,
    COFFEE,
    body,
    classify,
    infer,
    labels,
    message,
    stub,
    tensor,
    text,
)

FOLDER = Path(__file__).resolve().parents[1] / "photographs"
RIGHT = {
    CAT: {"tiger cat", "tabby, tabby cat"},
    COFFEE: {"espresso"},
    FOLDER / "clownfish.jpg": {"anemone fish"},
    FOLDER / "goldfish.jpg": {"goldfish, Carassius auratus"},
    FOLDER / "hammer.jpg": {"hammer"},
    FOLDER / "puffer.jpg": {"puffer, pufferfish, blowfish, globefish"},
    FOLDER / "rocket.jpg": {"missile", "projectile, missile"},
    FOLDER / "screwdriver.jpg": {"screwdriver"},
    FOLDER / "tripod.jpg": {"tripod"},
}
"""Each with the labels that are right for it."""


def array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def over_grpc(server: LocalServer, **contents: object) -> list[str]:
    outputs = ("labels",)
    response = stub(server).ModelInfer(message(outputs=outputs, **contents), timeout=60)
    if response.raw_output_contents:
        return texts(response.raw_output_contents[0])
    return [label.decode() for label in response.outputs[0].contents.bytes_contents]


def in_a_form(server: LocalServer, path: Path) -> requests.Response:
    url = f"{server.url}/v2/models/tinyvit/classify"
    return requests.post(url, files={"a": path.read_bytes()}, timeout=60)


def binary(server: LocalServer, data: bytes, **tensor: Any) -> requests.Response:
    return send(server, {"inputs": [binary_tensor(data, **tensor)]}, data)


def texts(packed: bytes) -> list[str]:
    found = []
    while packed:
        end = 4 + int.from_bytes(packed[:4], "little")
        found.append(packed[4:end].decode())
        packed = packed[end:]
    return found


ENCODINGS: dict[str, Callable[[LocalServer, Path], list[str]]] = {
    "base64": lambda server, path: labels(infer(server, body(tensor(path.read_bytes())))),
    "classify": lambda server, path: labels(classify(server, path.read_bytes())),
    "data-url": lambda server, path: labels(
        classify(server, json.dumps({"inputs": f"data:;base64,{text(path.read_bytes())}"}).encode())
    ),
    "form": lambda server, path: labels(in_a_form(server, path)),
    "array": lambda server, path: labels(infer(server, body(pixels(array(path))))),
    "binary": lambda server, path: labels(
        binary(server, elements(path.read_bytes()), shape=[1], datatype="BYTES")
    ),
    "binary-array": lambda server, path: labels(
        binary(server, array(path).tobytes(), shape=array(path).shape, datatype="UINT8")
    ),
    "grpc": lambda server, path: over_grpc(server, bytes_contents=[path.read_bytes()]),
    "grpc-raw": lambda server, path: over_grpc(server, raw=[elements(path.read_bytes())]),
    "grpc-raw-array": lambda server, path: over_grpc(
        server, shape=list(array(path).shape), datatype="UINT8", raw=[array(path).tobytes()]
    ),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_photograph_is_named_rightly(server: LocalServer, path: Path, encoding: str) -> None:
    """Among the first three labels of five."""
    told = ENCODINGS[encoding](server, path)
    assert len(told) == 5
    assert RIGHT[path] & set(told[:3]), told


def test_every_photograph_has_its_origin_and_licence() -> None:
    table = (FOLDER / "README.md").read_text()
    assert {path.name for path in FOLDER.glob("*.jpg")} == {
        path.name for path in RIGHT if path.parent == FOLDER
    }
    for path in FOLDER.glob("*.jpg"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{path.name}` |"))
        assert "| public domain |" in row or "| CC0 |" in row
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
