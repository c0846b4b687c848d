"""Concurrent requests get the same answers as sequential ones."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from mlserver_timm import TimmModel
from tests.support.app import App
from tests.support.clients import (
    CAT,
    COFFEE,
    Server,
    body,
    classify,
    image_file,
    infer,
    message,
    request,
    stub,
    tensor,
    text,
)
from tests.support.servers import Serve
from tests.support.timm_reference import timm_reference

CLIENTS = 16
ROUNDING = 1e-5
"""Difference of a score between two batches that hold the same image."""

Answer = tuple[int, list[Any], list[float]]
"""Status, labels or error, scores."""

Send = Callable[[Server], Answer]


def pixels(*shape: int, path: Path = CAT) -> dict[str, Any]:
    """Return an input with part of a photograph."""
    *count, height, width, channels = shape
    photo = Image.open(path).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    array = np.asarray(photo.resize((width, height))).reshape(height, width, channels)
    if count:
        array = np.stack([np.roll(array, 3 * i, axis=1) for i in range(*count)])
    return tensor(array.ravel().tolist(), list(shape), "UINT8")


def by_rest(content: Any) -> Send:
    def send(server: Server) -> Answer:
        response = infer(server, content)
        if response.status_code != 200:
            return response.status_code, [response.json()["error"]], []
        outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
        return 200, outputs["labels"], outputs["scores"]

    return send


def by_classify(image: bytes) -> Send:
    def send(server: Server) -> Answer:
        ranking = classify(server, image).json()
        return 200, [one["label"] for one in ranking], [one["score"] for one in ranking]

    return send


def by_grpc(*images: bytes) -> Send:
    def send(server: Server) -> Answer:
        request = message([len(images)], bytes_contents=list(images))
        labels, scores = stub(server).ModelInfer(request, timeout=60).outputs
        strings = [label.decode() for label in labels.contents.bytes_contents]
        return 200, strings, list(scores.contents.fp32_contents)

    return send


def different_requests() -> Iterator[Send]:
    """Yield 64 requests, no two alike; each eighth is invalid."""
    cat, coffee = CAT.read_bytes(), COFFEE.read_bytes()
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    invalid: list[Any] = [
        body(tensor([0] * 11, [2, 2, 3], "UINT8")),
        body(tensor([256] * 12, [2, 2, 3], "UINT8")),
        body(tensor(["!"])),
        body(tensor(b"no image at all")),
        body(tensor([text(cat), text(cat[:5000]), text(coffee)])),
        body(tensor(cat), parameters={"top_k": 0}),
        body(tensor([0.5] * 12, [2, 2, 3], "FP32")),
        body(tensor(cat), outputs=[{"name": "boxes"}]),
    ]
    for i in range(8):
        yield by_rest(body(pixels(30 + 7 * i, 90 - 5 * i, 3)))
        yield by_rest(body(pixels(1 + i % 4, 24, 36, 3, path=COFFEE)))
        yield by_rest(body(tensor(image_file(kinds[i % 5], (60 + i, 90 - i)))))
        yield by_rest(body(tensor([text(cat), text(coffee)][:: 1 if i % 2 else -1])))
        yield by_rest(body(pixels(36, 24, (1, 3, 4)[i % 3]), parameters={"top_k": 1 + 20 * i}))
        yield by_classify([cat, coffee][i % 2])
        yield by_grpc(*[image_file("PNG", (40 + 8 * i, 50))] * (1 + i % 2), coffee)
        yield by_rest(invalid[i])


def assert_same(answer: Answer, expected: Answer) -> None:
    assert answer[:2] == expected[:2]
    np.testing.assert_allclose(answer[2], expected[2], rtol=0, atol=ROUNDING)


def assert_same_concurrently(server: Server) -> None:
    sends = list(different_requests())
    sequential = [send(server) for send in sends]
    assert [answer[0] for answer in sequential] == ([200] * 7 + [400]) * 8, sequential
    with ThreadPoolExecutor(CLIENTS) as pool:
        for order in (1, -1):
            answers = list(pool.map(lambda send: send(server), sends[::order]))
            for answer, expected in zip(answers, sequential[::order], strict=True):
                assert_same(answer, expected)
    for answer, path in ((sequential[5], CAT), (sequential[13], COFFEE)):
        timm_reference().assert_matches(Image.open(path).convert("RGB"), answer[1], answer[2])


def test_same_answers_concurrently(server: Server) -> None:
    assert_same_concurrently(server)


def test_same_answers_concurrently_with_torch(serve: Serve) -> None:
    server = serve(env={"TINYVIT_ENGINE": "torch", "TINYVIT_MAX_QUEUE": "200"})
    facts = request(server, "GET", "/v2/models/tinyvit").json()["parameters"]
    assert facts["engine"].startswith("torch")
    assert_same_concurrently(server)


# --- Batching ---------------------------------------------------------------------------------


def batches() -> np.ndarray:
    """Return how many images and batches the engine got so far."""
    names = ("tinyvit_batch_size_images_sum", "tinyvit_batch_size_images_count")
    labels = {"model_name": "tinyvit", "model_version": ""}
    return np.array([REGISTRY.get_sample_value(name, labels) or 0 for name in names])


def test_mlserver_merges_no_requests(
    make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLServer's own batching would join arrays of 24x36 and 36x24 along their first axis."""
    shapes: list[list[int]] = []
    decode = TimmModel.decode_request

    def observe(self: TimmModel, payload: Any) -> Any:
        shapes.append(list(payload.inputs[0].shape))
        return decode(self, payload)

    monkeypatch.setattr(TimmModel, "decode_request", observe)
    app = make_app(max_batch_size=4, max_batch_time=0.1)
    sent = [[24, 36, 3], [36, 24, 3], [1, 24, 36, 3], [2, 36, 24, 3]] * 6
    sends = [by_rest(body(pixels(*s, path=(CAT, COFFEE)[i % 2]))) for i, s in enumerate(sent)]
    before = batches()
    with ThreadPoolExecutor(len(sends)) as pool:
        together = list(pool.map(lambda send: send(app), sends))
    images, calls = batches() - before
    assert sorted(shapes) == sorted(sent)
    assert [len(answer[1]) for answer in together] == [5, 5, 5, 10] * 6
    assert images == 30 and 8 <= calls < 24, "images of several requests share a batch"
    for send, answer in list(zip(sends, together, strict=True))[:4]:
        assert_same(answer, send(app))
