"""The pipeline with the bundled checkpoint."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import InvalidImage, RequestTimedOut
from tests.support.clients import encoded, until
from tests.support.pipelines import sample_pipeline

OUTPUTS = frozenset({PROBABILITIES})


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Body(bytearray):
    """Data of a request that weak references can watch."""


@pytest.mark.parametrize("end", ["answered", "refused", "timed out", "abandoned"])
async def test_a_request_leaves_nothing_behind(
    cache_dir: Path, without_collector: None, end: str
) -> None:
    """Its data is freed at its end, not at the next garbage collection: until then it could be
    gigabytes."""
    file = b"hello" if end == "refused" else encoded(Image.new("RGB", (8, 8)))
    tested = await sample_pipeline(cache_dir, timeout=1e-6 if end == "timed out" else 30)

    async def request() -> "weakref.ref[Body]":
        body = Body(file)
        images = [body] * 3  # type: ignore[arg-type]
        task = asyncio.ensure_future(tested.infer(images, OUTPUTS))
        if end == "abandoned":
            await asyncio.sleep(0)
            task.cancel()
        del images
        await asyncio.wait([task])  # an exception raised here would refer to this frame
        if end == "answered":
            sums = task.result()[PROBABILITIES].sum(axis=1)
            np.testing.assert_allclose(sums, [1] * 3, atol=1e-4)
        elif end == "abandoned":
            assert task.cancelled()
        else:
            assert isinstance(task.exception(), (InvalidImage, RequestTimedOut))
        return weakref.ref(body)

    references = [await request() for _ in range(5)]
    await asyncio.to_thread(until, lambda: [ref() for ref in references] == [None] * 5)
    await tested.close()
