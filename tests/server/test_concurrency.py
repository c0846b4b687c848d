"""Who asks together with others is answered as who asks alone, in every arrangement."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from client.local import LocalServer
from tests.support.clients import (
    COFFEE,
    body,
    classify,
    image_file,
    infer,
    message,
    stub,
    tensor,
    text,
)
from tests.support.servers import Serve, settings as copy_of_tinyvit
from tests.support.timm_reference import truth

CAT = COFFEE.with_name("cat.jpg")
TOGETHER = 32
ROUNDING = 1e-5
"""Of a score, between one batch and another that holds the same image."""

Answer = tuple[int, list[Any], list[float]]
"""Status, labels or sentence, scores."""


# --- Sixty-four requests ----------------------------------------------------------------------


def pixels(*shape: int, datatype: str = "UINT8", path: Path = CAT) -> dict[str, Any]:
    """An array with part of a photograph on it."""
    *count, height, width, channels = shape
    photo = Image.open(path).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    array = np.asarray(photo.resize((width, height))).reshape(height, width, channels)
    if count:
        array = np.stack([np.roll(array, 3 * i, axis=1) for i in range(*count)])
    return tensor(array.ravel().tolist(), list(shape), datatype)


def over_rest(request: Any) -> Callable[[LocalServer], Answer]:
    def ask(server: LocalServer) -> Answer:
        response = infer(server, request)
        if response.status_code != 200:
            return response.status_code, [response.json()["error"]], []
        outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
        return 200, outputs["labels"], outputs["scores"]

    return ask


def over_classify(picture: bytes) -> Callable[[LocalServer], Answer]:
    def ask(server: LocalServer) -> Answer:
        response = classify(server, picture)
        content = response.json()
        if response.status_code != 200:
            return response.status_code, [content["error"]], []
        return 200, [one["label"] for one in content], [one["score"] for one in content]

    return ask


def over_grpc(*pictures: bytes) -> Callable[[LocalServer], Answer]:
    def ask(server: LocalServer) -> Answer:
        request = message([len(pictures)], bytes_contents=list(pictures))
        labels, scores = stub(server).ModelInfer(request, timeout=60).outputs
        told = [label.decode() for label in labels.contents.bytes_contents]
        return 200, told, list(scores.contents.fp32_contents)

    return ask


def eight(i: int) -> list[Callable[[LocalServer], Answer]]:
    """Seven good requests and a bad one, others for each i from 0 to 7."""
    cat, coffee = CAT.read_bytes(), COFFEE.read_bytes()
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    bad: list[Any] = [
        body(tensor([0] * 11, [2, 2, 3], "UINT8")),
        body(tensor([256] * 12, [2, 2, 3], "UINT8")),
        body(tensor(["!"])),
        body(tensor(b"no image at all")),
        body(tensor([text(cat), text(cat[:5000]), text(coffee)])),
        body(tensor(cat), parameters={"top_k": 1001}),
        body(tensor([0.5] * 12, [2, 2, 3], "FP32")),
        body(tensor(cat), outputs=[{"name": "boxes"}]),
    ]
    return [
        over_rest(body(pixels(30 + 7 * i, 90 - 5 * i, 3))),
        over_rest(body(pixels(1 + i % 4, 24, 36, 3, path=COFFEE))),
        over_rest(body(tensor(image_file(kinds[i % 5], (60 + i, 90 - i))))),
        over_rest(body(tensor([text(cat), text(coffee)][:: 1 if i % 2 else -1]))),
        over_rest(body(pixels(36, 24, (1, 3, 4)[i % 3]), parameters={"top_k": 1 + 20 * i})),
        over_classify([cat, coffee][i % 2]),
        over_grpc(*[image_file("PNG", (40 + 8 * i, 50))] * (1 + i % 2), coffee),
        over_rest(bad[i]),
    ]


def mixed() -> list[Callable[[LocalServer], Answer]]:
    return sum((eight(i) for i in range(8)), [])


def assert_same(told: Answer, alone: Answer) -> None:
    assert told[0] == alone[0]
    assert told[1] == alone[1]
    np.testing.assert_allclose(told[2], alone[2], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("count", [0, 2])
def test_together_as_alone(serve: Serve, tmp_path: Path, count: int, engine: str) -> None:
    folder = copy_of_tinyvit(tmp_path, count)
    server = serve(folder=folder, env={"TINYVIT_ENGINE": engine, "TINYVIT_MAX_QUEUE": "200"})
    asked = mixed()
    assert len(asked) == 64
    alone = [ask(server) for ask in asked]
    assert [answer[0] for answer in alone] == ([200] * 7 + [400]) * 8, alone
    with ThreadPoolExecutor(TOGETHER) as pool:
        for order in (1, -1):
            answers = list(pool.map(lambda ask: ask(server), asked[::order]))
            for told, expected in zip(answers, alone[::order], strict=True):
                assert_same(told, expected)
    url = f"{server.url}/v2/models/tinyvit"
    assert requests.get(url, timeout=10).json()["parameters"]["engine"].startswith(engine)
    for answer, path in ((alone[5], CAT), (alone[13], COFFEE)):
        truth().assert_tells(Image.open(path).convert("RGB"), answer[1], answer[2])


# --- What reaches predict ---------------------------------------------------------------------

OBSERVING = """
import importlib
import json
import os

Served = importlib.import_module("serve-model").TinyViTModel


class Observing(Served):
    async def predict(self, payload):
        with open(os.environ["OBSERVED"], "a") as file:
            file.write(json.dumps(payload.inputs[0].shape) + "\\n")
        return await super().predict(payload)
"""


@pytest.fixture
def observe(serve: Serve, tmp_path: Path) -> Callable[..., LocalServer]:
    """A server that writes down what its `predict` is given."""

    def one(count: int, **settings: Any) -> LocalServer:
        folder = copy_of_tinyvit(tmp_path, count)
        (folder / "observing.py").write_text(OBSERVING)
        path = folder / "model-settings.json"
        changed = {"implementation": "observing.Observing", **settings}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return serve(folder=folder, env={"OBSERVED": str(tmp_path / "observed")})

    return one


def batches(server: LocalServer) -> Mapping[str, float]:
    """Of the images that reached the engine: `sum` of them, `count` of batches, and by `le` how
    many batches were so large or smaller."""
    found: dict[str, float] = {}
    name = "tinyvit_batch_size_images_"
    for line in requests.get(server.metrics, timeout=10).text.splitlines():
        if line.startswith(name):
            key, value = line.removeprefix(name).rsplit(" ", 1)
            kind = key.split('le="')[1].split('"')[0] if "le=" in key else key.partition("{")[0]
            found[kind] = found.get(kind, 0) + float(value)
    return found


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_merged_before_predict(
    observe: Callable[..., LocalServer], tmp_path: Path, count: int
) -> None:
    """With the batching that the lab's reader tries, MLServer's own would concatenate arrays on
    their first axis, mixing 24x36 with 36x24. What is merged is merged behind it, after
    preprocessing."""
    server = observe(count, max_batch_size=4, max_batch_time=0.1)
    shapes = [[24, 36, 3], [36, 24, 3], [1, 24, 36, 3], [2, 36, 24, 3]] * 6
    asked = [
        over_rest(body(pixels(*shape, path=(CAT, COFFEE)[i % 2]))) for i, shape in enumerate(shapes)
    ]
    (tmp_path / "observed").write_text("")
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda ask: ask(server), asked))
    observed = [json.loads(line) for line in (tmp_path / "observed").read_text().splitlines()]
    assert sorted(observed) == sorted(shapes)
    assert [len(answer[1]) for answer in together] == [5, 5, 5, 10] * 6
    seen = batches(server)
    assert seen["sum"] == 30
    assert 8 <= seen["count"] < 24, "images of several requests went together"
    for ask, told in list(zip(asked, together, strict=True))[:4]:
        started = time.monotonic()
        assert_same(told, ask(server))
        assert time.monotonic() - started >= 0.1, "who is alone waits for others"


def test_batches_are_as_large_as_the_settings_say(observe: Callable[..., LocalServer]) -> None:
    """Three at once and no waiting: one large request, cut up."""
    server = observe(0, max_batch_size=3)
    asked = over_rest(body(pixels(10, 24, 36, 3)))
    before = batches(server)
    status, labels, _ = asked(server)
    assert (status, len(labels)) == (200, 50)
    after = batches(server)
    assert after["sum"] - before.get("sum", 0) == 10
    assert after["count"] - before.get("count", 0) >= 4
