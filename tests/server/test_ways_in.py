"""Every way into a real server gives timm's labels, and photographs get correct ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.local import LocalServer
from tests.support.answers import pixels
from tests.support.binary_tensors import binary_tensor, elements, read, send, strings_of
from tests.support.clients import (
    CAT,
    COFFEE,
    body,
    classify,
    infer,
    labels,
    message,
    request,
    stub,
    tensor,
    text,
)
from tests.support.timm_reference import timm_reference

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
"""The right labels of each photograph."""

MODEL = "/v2/models/tinyvit"
FILE = COFFEE.read_bytes()
ARRAY = np.asarray(Image.open(COFFEE).convert("RGB"))
JSON_REQUEST = body(tensor(FILE))


def by_grpc(server: LocalServer, **contents: object) -> list[str]:
    outputs = stub(server).ModelInfer(message(outputs=("labels",), **contents), timeout=60)
    if not outputs.raw_output_contents:
        return [label.decode() for label in outputs.outputs[0].contents.bytes_contents]
    return strings_of(outputs.raw_output_contents[0])


def by_grpc_stream(server: LocalServer) -> list[str]:
    (response,) = stub(server).ModelStreamInfer(iter([message(bytes_contents=[FILE])]), timeout=60)
    return [label.decode() for label in response.outputs[0].contents.bytes_contents]


def by_event(server: LocalServer, route: str) -> list[str]:
    response = request(server, "POST", f"{MODEL}/{route}", json=JSON_REQUEST)
    return json.loads(response.text.removeprefix("data: "))["outputs"][0]["data"]


def binary(server: LocalServer, data: bytes, shape: list[int], datatype: str) -> list[str]:
    return read(send(server, body(binary_tensor(data, shape, datatype)), data))["labels"]


def hugging_face(server: LocalServer, prefix: str) -> list[str]:
    return labels(classify(server, json.dumps({"inputs": prefix + text(FILE)}).encode()))


WAYS: dict[str, Callable[[LocalServer], list[str]]] = {
    "classify, file": lambda server: labels(classify(server, FILE)),
    "classify, form": lambda server: labels(
        request(server, "POST", f"{MODEL}/classify", files={"a": FILE})
    ),
    "classify, base64": lambda server: hugging_face(server, ""),
    "classify, data URL": lambda server: hugging_face(server, "data:;base64,"),
    "infer, base64": lambda server: labels(infer(server, JSON_REQUEST)),
    "infer, pixels": lambda server: labels(infer(server, body(pixels(ARRAY)))),
    "infer, binary file": lambda server: binary(server, elements(FILE), [1], "BYTES"),
    "infer, binary pixels": lambda server: binary(
        server, ARRAY.tobytes(), list(ARRAY.shape), "UINT8"
    ),
    "generate": lambda server: labels(
        request(server, "POST", f"{MODEL}/generate", json=JSON_REQUEST)
    ),
    "infer_stream": lambda server: by_event(server, "infer_stream"),
    "generate_stream": lambda server: by_event(server, "generate_stream"),
    "gRPC, file": lambda server: by_grpc(server, bytes_contents=[FILE]),
    "gRPC, raw file": lambda server: by_grpc(server, raw=[elements(FILE)]),
    "gRPC, pixels": lambda server: by_grpc(
        server, shape=list(ARRAY.shape), datatype="UINT8", uint_contents=ARRAY.ravel().tolist()
    ),
    "gRPC, raw pixels": lambda server: by_grpc(
        server, shape=list(ARRAY.shape), datatype="UINT8", raw=[ARRAY.tobytes()]
    ),
    "gRPC, stream": by_grpc_stream,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_timms_labels(server: LocalServer, way: str) -> None:
    assert WAYS[way](server) == timm_reference().ranking(Image.open(COFFEE).convert("RGB"))[0]


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_a_right_label_is_among_the_first_three(server: LocalServer, path: Path) -> None:
    first_three = labels(classify(server, path.read_bytes()))[:3]
    assert RIGHT[path] & set(first_three), first_three


def test_every_photograph_has_a_source_and_a_free_licence() -> None:
    table = (FOLDER / "README.md").read_text()
    assert set(FOLDER.glob("*.jpg")) == {path for path in RIGHT if path.parent == FOLDER}
    for path in FOLDER.glob("*.jpg"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{path.name}` |"))
        assert "| public domain |" in row or "| CC0 |" in row
