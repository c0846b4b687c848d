"""The classifier by itself, with the bundled checkpoint."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlserver.settings import ModelSettings
from PIL import Image

from classifier import Classifier, TimedOut
from configuration import Configuration
from conftest import ROOT
from images import ImageError
from monitoring import Monitor
from protocol import Picture


def classifier(cache_dir: Path, **extra: Any) -> Classifier:
    return Classifier(
        Configuration(fallback="sample", cache_dir=cache_dir, **extra),
        uri="sample",
        base=ROOT / "tinyvit",
        max_batch_size=4,
        max_batch_time=0,
        threads=2,
        monitor=Monitor(ModelSettings(name="tested", implementation="mlserver.MLModel")),
    )


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Body(bytearray):
    """A request's data that can be watched."""


def picture(body: Body, ends: str) -> Picture:
    def opened() -> Image.Image:
        if ends == "refused" and body:
            try:
                int("pixels")
            except ValueError:
                raise ImageError("The image is none.") from None
        return Image.frombytes("RGB", (8, 8), bytes(body))

    return opened


@pytest.mark.parametrize("ends", ["answered", "refused", "timed out", "given up"])
def test_a_request_leaves_nothing_behind(
    cache_dir: Path, without_collector: None, ends: str
) -> None:
    """Its data is freed as soon as it has ended, not when garbage is collected, which until then
    could be gigabytes."""
    tested = classifier(cache_dir, timeout=1e-6 if ends == "timed out" else 30)

    async def request() -> "weakref.ref[Body]":
        body = Body(8 * 8 * 3)
        asked = asyncio.ensure_future(tested([picture(body, ends)] * 3))
        if ends == "given up":
            await asyncio.sleep(0)
            asked.cancel()
        await asyncio.wait([asked])  # an exception that it raised here would know this frame
        if ends == "answered":
            np.testing.assert_allclose(asked.result().sum(axis=1), [1] * 3, atol=1e-4)
        else:
            assert asked.cancelled() or isinstance(asked.exception(), (ImageError, TimedOut))
        return weakref.ref(body)

    async def scenario() -> None:
        tested.start()
        left = [await request() for _ in range(5)]
        await tested.close()
        await asyncio.sleep(0.1)
        assert [ref() for ref in left] == [None] * 5

    asyncio.run(scenario())
