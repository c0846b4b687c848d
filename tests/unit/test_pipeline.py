"""The pipeline by itself, with the bundled checkpoint."""

import asyncio
import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlserver.settings import ModelSettings

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import InvalidImage, RequestTimedOut
from mlserver_timm.images.decode import PixelImage, UndecodedArray
from mlserver_timm.images.decode_budget import BUDGET
from mlserver_timm.inference.pipeline import InferencePipeline
from mlserver_timm.metrics import RuntimeMetrics
from mlserver_timm.settings import BatcherLimits, RuntimeSettings
from tests.support.clients import until
from tests.support.timm_reference import SAMPLE


def pipeline(cache_dir: Path, num_threads: int = 2, **extra: Any) -> InferencePipeline:
    return InferencePipeline(
        Checkpoint(SAMPLE, "sample"),
        RuntimeSettings(num_threads=num_threads, cache_dir=cache_dir, **extra),
        BatcherLimits(max_batch_size=4, max_batch_time=0, max_queue=64),
        RuntimeMetrics(ModelSettings(name="tested", implementation="mlserver.MLModel")),
    )


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Body(bytearray):
    """A request's data that can be watched."""


@dataclass(frozen=True, eq=False)
class WatchedImage:
    """Eight by eight pixels that are a request's data."""

    body: Body
    refused: bool

    def open(self) -> UndecodedArray:
        if self.refused:
            try:
                int("pixels")
            except ValueError:
                raise InvalidImage("The image is none.") from None
        return UndecodedArray(np.frombuffer(self.body, np.uint8).reshape(8, 8, 3))


@pytest.mark.parametrize("ends", ["answered", "refused", "timed out", "given up"])
def test_a_request_leaves_nothing_behind(
    cache_dir: Path, without_collector: None, ends: str
) -> None:
    """Its data is freed as soon as it has ended, not when garbage is collected, which until then
    could be gigabytes."""
    tested = pipeline(cache_dir, timeout=1e-6 if ends == "timed out" else 30)

    async def request() -> "weakref.ref[Body]":
        body = Body(8 * 8 * 3)
        images = [WatchedImage(body, ends == "refused")] * 3
        asked = asyncio.ensure_future(tested.infer(images, frozenset({PROBABILITIES})))
        if ends == "given up":
            await asyncio.sleep(0)
            asked.cancel()
        del images
        await asyncio.wait([asked])  # an exception that it raised here would know this frame
        if ends == "answered":
            np.testing.assert_allclose(
                asked.result()[PROBABILITIES].sum(axis=1), [1] * 3, atol=1e-4
            )
        else:
            assert asked.cancelled() or isinstance(
                asked.exception(), (InvalidImage, RequestTimedOut)
            )
        return weakref.ref(body)

    async def scenario() -> None:
        tested.start()
        left = [await request() for _ in range(5)]
        await tested.close()
        await asyncio.to_thread(until, lambda: [ref() for ref in left] == [None] * 5)

    asyncio.run(scenario())


def test_a_crowd_with_memory_for_one_image_at_a_time(cache_dir: Path) -> None:
    """Whoever finds none where images are decoded and computed in one go waits for some; each gets
    its own answer."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (512, 384, 3), np.uint8) for _ in range(12)]
    images = [PixelImage(array.ravel(), 0, *array.shape) for array in arrays]
    tested = pipeline(cache_dir)
    outputs = frozenset({PROBABILITIES})

    async def scenario() -> None:
        tested.start()
        alone = [(await tested.infer([image], outputs))[PROBABILITIES] for image in images]
        size = tested._transform().memory(images[0].open())
        tested._decoders._limits = dataclasses.replace(tested._decoders._limits, memory=size)
        crowd = await asyncio.gather(*[tested.infer([image], outputs) for image in images])
        for one, other in zip(alone, crowd, strict=True):
            np.testing.assert_allclose(other[PROBABILITIES], one, atol=1e-5)
        await tested.close()

    asyncio.run(scenario())
    assert BUDGET.take(2**20, 2**20)  # all was given back
    BUDGET.give_back(2**20)


@dataclass(frozen=True, eq=False)
class TracedImage:
    """Notes which threads decode it."""

    threads: set[str]

    def open(self) -> UndecodedArray:
        self.threads.add(threading.current_thread().name.partition("_")[0])
        return UndecodedArray(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("num_threads", "images", "expected"), [(2, 1, "decode"), (2, 8, "engine"), (12, 8, "decode")]
)
def test_who_decodes(cache_dir: Path, num_threads: int, images: int, expected: str) -> None:
    """In a crowd who computes, unless the engine takes fewer calls than there are cores."""
    tested = pipeline(cache_dir, num_threads)
    threads: set[str] = set()

    async def scenario() -> None:
        tested.start()
        await tested.infer([TracedImage(threads)] * images, frozenset({PROBABILITIES}))
        await tested.close()

    asyncio.run(scenario())
    assert threads == {expected}
