"""A batcher with an engine that doubles numbers and records its input."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlserver_timm.inference.batcher import Batcher
from mlserver_timm.settings import BatcherLimits

PATIENCE = 20.0
"""Timeout in seconds."""


POISON = 1000
"""The engine fails on a batch with this number or a larger one."""


OUTPUT = "numbers"
"""The name of the one output."""

Infer = Callable[[np.ndarray], np.ndarray]


class Doubling:
    """Doubles every number and records its input."""

    def __init__(self, naps: list[float] | None = None) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Semaphore(0)
        self._naps = naps or [0.0]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(pixels.ravel().tolist())
        self.busy.release()
        assert self.free.wait(PATIENCE)
        time.sleep(self._naps[len(self.batches) % len(self._naps)])
        if (pixels >= POISON).any():
            raise RuntimeError("no such kernel")
        return pixels * 2

    async def taken(self) -> None:
        """Wait for the next batch to reach the engine."""
        assert await asyncio.to_thread(self.busy.acquire, timeout=PATIENCE)

    @property
    def computed(self) -> list[int]:
        return sum(self.batches, [])


def image(value: int) -> np.ndarray:
    return np.array([value])


@dataclass
class FakeEngine:
    """An engine that computes by two functions."""

    throughput: Infer
    latency: Infer
    num_streams: int
    num_infer_requests: int
    images_per_request: int
    outputs: frozenset[str] = frozenset({OUTPUT})
    name: str = "fake"
    precision: str = "fp32"

    def infer_latency(self, pixels: np.ndarray, outputs: Any) -> dict[str, np.ndarray]:
        return {name: self.latency(pixels) for name in outputs}

    def infer_throughput(self, pixels: np.ndarray, outputs: Any) -> dict[str, np.ndarray]:
        return {name: self.throughput(pixels) for name in outputs}


@asynccontextmanager
async def batcher(
    infer: Infer,
    size: int = 4,
    patience: float = 0.0,
    queue: int = 64,
    infer_requests: int = 1,
    streams: int = 1,
    images_per_request: int | None = None,
    latency: Infer | None = None,
    **options: Any,
) -> AsyncIterator[Batcher]:
    """Yield a batcher with `infer` as its engine; `latency`, if given, computes single images."""
    engine = FakeEngine(
        infer, latency or infer, streams, infer_requests, images_per_request or size
    )
    queued = Batcher(engine, BatcherLimits(size, patience, queue), **options)
    yield queued
    if not queued._closing:  # by the test
        await queued.close()


async def submit(queue: Batcher, values: list[int]) -> list[Any]:
    """Return the answers of a request for several images: numbers or exceptions."""
    with queue.admit(len(values)):
        return await asyncio.gather(
            *[submit_one(queue, value) for value in values], return_exceptions=True
        )


async def submit_one(queue: Batcher, value: int) -> int:
    """Return the answer for an admitted image."""
    return int((await queue.submit(image(value), frozenset({OUTPUT})))[OUTPUT][0])


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
