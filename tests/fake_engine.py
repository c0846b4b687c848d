"""A batcher before an engine that doubles numbers and notes what it was given."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from batching import Batcher

PATIENCE = 20.0
"""Seconds until something counts as left waiting."""


POISON = 1000
"""A batch with such an image or a larger one makes the engine fail."""


class Engine:
    """Doubles every number; notes what it was given."""

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
        """Returns once a batch more has reached the engine."""
        assert await asyncio.to_thread(self.busy.acquire, timeout=PATIENCE)

    @property
    def computed(self) -> list[int]:
        return sum(self.batches, [])


def image(value: int) -> np.ndarray:
    return np.array([value])


def batcher(
    engine: Any, size: int = 4, patience: float = 0.0, queue: int = 64, **options: Any
) -> Batcher:
    return Batcher(engine, max_batch_size=size, max_batch_time=patience, max_queue=queue, **options)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


async def submit(queue: Batcher, values: list[int]) -> list[Any]:
    """What a request for several images gets: numbers, or the exceptions in their place."""
    with queue.admit(len(values)):
        answers = await asyncio.gather(
            *[queue.submit(image(value)) for value in values], return_exceptions=True
        )
    return [answer if isinstance(answer, BaseException) else int(answer[0]) for answer in answers]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
