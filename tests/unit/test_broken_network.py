"""NaN is never answered, and a network that returns nothing else is not ready."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import EngineFailed
from mlserver_timm.inference.engines.base import Outputs
from mlserver_timm.inference.pipeline import InferencePipeline
from tests.support.pipelines import sample_pipeline

OUTPUTS = frozenset({PROBABILITIES})
BLACK, WHITE = (np.full((2, 2, 3), value, np.uint8) for value in (0, 255))


class Damaged:
    """An engine that returns NaN for some images."""

    def __init__(self, pipeline: InferencePipeline, fails: Callable[[np.ndarray], bool]) -> None:
        self._engine = pipeline.engine
        self._fails = fails
        for name in ("num_streams", "num_infer_requests", "images_per_request", "outputs"):
            setattr(self, name, getattr(self._engine, name))

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        results = {k: v.copy() for k, v in self._engine.infer_latency(pixels, outputs).items()}
        for i, image in enumerate(pixels):
            if self._fails(image):
                results[PROBABILITIES][i, -1] = np.nan
        return results

    infer_throughput = infer_latency


@asynccontextmanager
async def served(
    cache_dir: Path, fails: Callable[[np.ndarray], bool]
) -> AsyncIterator[InferencePipeline]:
    """Yield a pipeline whose engine fails for some images."""
    tested = await sample_pipeline(cache_dir, num_threads=1)
    tested._batcher._engine = Damaged(tested, fails)  # type: ignore[assignment]
    yield tested
    await tested.close()


async def test_network_that_is_broken(cache_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every request fails, and the log has one line."""
    caplog.set_level(logging.ERROR, "mlserver.tinyvit")
    async with served(cache_dir, lambda image: True) as tested:
        assert not tested.is_broken()
        for image in (BLACK, WHITE, BLACK):
            with pytest.raises(EngineFailed):
                await tested.infer([image], OUTPUTS)
            assert tested.is_broken()
    assert len(caplog.messages) == 1 and "not ready" in caplog.text


async def test_one_image_that_causes_nan(cache_dir: Path) -> None:
    """Its sender does not make the model unready for others."""
    async with served(cache_dir, lambda image: image.min() == 255) as tested:
        bad, good = await asyncio.gather(
            tested.infer([BLACK, WHITE], OUTPUTS),
            tested.infer([BLACK], OUTPUTS),
            return_exceptions=True,
        )
        assert isinstance(bad, EngineFailed)
        assert isinstance(good, dict) and np.isfinite(good[PROBABILITIES]).all()
        assert not tested.is_broken()
