"""The queue before the engine: batches hold images of many requests, and each gets its answer."""

import asyncio
import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from mlserver_timm.errors import EngineFailed, InvalidRequest, ModelClosing, QueueFull
from mlserver_timm.images.pool import resolve
from mlserver_timm.inference.engines.base import Engine, Outputs
from mlserver_timm.settings import BatcherLimits

RATE_WINDOW = 32
"""Number of latest batches from which the rate of answers is computed: about a second of work."""

Observe = Callable[[str, float], None]
"""Receives a measurement: the metric's name and its value."""

Infer = Callable[[np.ndarray, frozenset[str]], Outputs]

logger = logging.getLogger("mlserver.tinyvit")


@dataclass(eq=False)
class Job:
    """One image that waits for the engine, and the future that its owner awaits."""

    pixels: np.ndarray
    """uint8 `[H,W,3]`."""
    outputs: frozenset[str]
    result: "asyncio.Future[Outputs]"
    enqueue_time: float = field(default_factory=time.monotonic)


class Batcher:
    """Sends waiting images to an engine, in the order of their arrival.

    A batch has at most `limits.max_batch_size` images, divided evenly among the engine's infer
    requests. One image, or fewer than the engine has streams, goes to `infer_latency` if the engine
    is idle. The first image of a batch waits up to `limits.max_batch_time` seconds for others.
    """

    def __init__(
        self,
        engine: Engine,
        limits: BatcherLimits,
        observe: Observe = lambda name, value: None,
        engine_call: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Start the queue; an event loop must be running. `engine_call` is entered for the time of
        each call of the engine."""
        self._engine = engine
        self._limits = limits
        self._observe = observe
        self._engine_call = engine_call
        self._waiting: deque[Job] = deque()
        self._changed = asyncio.Event()
        self.admitted = 0
        """Images of all admitted requests that are not yet answered."""
        self._idle = asyncio.Event()
        self._closing = False
        self._latest: deque[tuple[float, int]] = deque(maxlen=RATE_WINDOW)
        self._last_time = 0.0  # of a batch's end, or of the first image after a pause
        self._threads = ThreadPoolExecutor(engine.num_infer_requests, thread_name_prefix="engine")
        self._running: set[asyncio.Task[None]] = set()
        self._free_since = [0.0] * engine.num_streams  # a heap of times, one for each stream
        self._task = asyncio.create_task(self._run())

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Count the images of a request, from decoding to the answer.

        Raises QueueFull, ModelClosing, or InvalidRequest for a request larger than the queue.
        """
        if images > self._limits.max_queue:
            raise InvalidRequest(
                f"{images} images are too many for one request; at most {self._limits.max_queue} "
                f"are accepted."
            )
        self.check_room(images)
        if not self.admitted:
            self._last_time = time.monotonic()
        self.admitted += images
        try:
            yield
        finally:
            self.admitted -= images
            if not self.admitted:
                self._idle.set()

    def check_room(self, images: int) -> None:
        """Raise QueueFull or ModelClosing if that many images cannot be admitted now."""
        if self._closing:
            raise ModelClosing()
        if self.admitted + images > self._limits.max_queue:
            raise QueueFull(self._limits.max_queue, self._seconds_until_empty())

    def _seconds_until_empty(self) -> int:
        """Return the expected seconds until all admitted images are answered, at the rate of the
        latest batches; decoding is included."""
        if not self._latest:
            return 1
        seconds, images = (sum(values) for values in zip(*self._latest, strict=True))
        return max(1, math.ceil(self.admitted * seconds / images))

    async def submit(self, pixels: np.ndarray, outputs: frozenset[str]) -> Outputs:
        """Return the engine's outputs `[...]` for one image, uint8 `[H,W,3]`.

        Raises EngineFailed. If the caller is cancelled, the image is not computed.
        """
        job = Job(pixels, outputs, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._changed.set()
        try:
            return await job.result
        finally:
            del job  # an exception refers to this frame, and the job's result to the exception

    async def close(self) -> None:
        """Refuse new requests, and return when all admitted ones are answered."""
        self._closing = True
        while self.admitted:
            self._idle.clear()
            await self._idle.wait()
        tasks = [self._task, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        del self._engine

    async def _run(self) -> None:
        # No local variable for the engine: this frame would keep it in memory after the task's end.
        while True:
            await self._wait_for_batch()
            if len(self._running) == self._engine.num_infer_requests:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            if self._is_lone():
                await self._answer(
                    self._next_batch(self._limits.max_batch_size), self._engine.infer_latency
                )
            else:
                task = asyncio.create_task(
                    self._answer(self._next_batch(self._share()), self._engine.infer_throughput)
                )
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _is_lone(self) -> bool:
        """Return whether the images in work, also those being decoded, are too few to fill the
        streams."""
        return self.admitted < max(2, self._engine.num_streams) and not self._running

    def _share(self) -> int:
        """Return the number of images for the next infer request: an even share."""
        idle = self._engine.num_infer_requests - len(self._running)
        return min(self._engine.images_per_request, math.ceil(len(self._waiting) / idle))

    def _next_batch(self, size: int) -> Sequence[Job]:
        """Take up to `size` images from the queue, without those of cancelled requests."""
        batch: list[Job] = []
        while self._waiting and len(batch) < size:
            job = self._waiting.popleft()
            if not job.result.done():
                batch.append(job)
        if batch:
            self._observe("queue_length_images", len(batch) + len(self._waiting))
        return batch

    async def _answer(self, batch: Sequence[Job], infer: Infer) -> None:
        if not batch:
            return
        answers: Sequence[Outputs | Exception]
        loop = asyncio.get_running_loop()
        try:
            with self._engine_call():
                *times, answers = await loop.run_in_executor(self._threads, _compute, batch, infer)
            self._measure(batch, *times)
        except Exception:  # of the engine, or no thread can be started
            logger.exception("The engine failed on a batch of %d images.", len(batch))
            answers = [EngineFailed() for _ in batch]
        for job, answer in zip(batch, answers, strict=True):
            resolve(job.result, answer)

    def _measure(self, batch: Sequence[Job], enter_time: float, end_time: float) -> None:
        # The engine takes calls in their order, and each waits until one of the streams is free.
        start_time = max(enter_time, heapq.heapreplace(self._free_since, end_time))
        self._observe("batch_size_images", len(batch))
        self._observe("engine_seconds", end_time - start_time)
        since, self._last_time = self._last_time, time.monotonic()
        self._latest.append((self._last_time - since, len(batch)))
        for job in batch:
            self._observe("queue_seconds", start_time - job.enqueue_time)

    async def _wait_for_batch(self) -> None:
        """Wait until the batch is full, or its first image has waited `max_batch_time`."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        deadline = self._waiting[0].enqueue_time + self._limits.max_batch_time
        while len(self._waiting) < self._limits.max_batch_size:
            patience = deadline - time.monotonic()
            if patience <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), patience)
            except asyncio.TimeoutError:
                return


def _compute(batch: Sequence[Job], infer: Infer) -> tuple[float, float, list[Outputs]]:
    """Return start and end of the engine's call, and the outputs of each image."""
    enter_time = time.monotonic()
    images = [job.pixels for job in batch]
    outputs = frozenset[str]().union(*(job.outputs for job in batch))
    results = infer(np.stack(images) if len(images) > 1 else images[0][np.newaxis], outputs)
    for name, rows in results.items():
        if len(rows) != len(batch):
            raise ValueError(f"{len(rows)} rows of {name} for {len(batch)} images")
    end_time = time.monotonic()
    answers: list[Outputs] = [
        {name: rows[i] for name, rows in results.items()} for i in range(len(batch))
    ]
    return enter_time, end_time, answers
