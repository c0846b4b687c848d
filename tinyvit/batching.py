"""One queue before the engine: images of many requests in one batch, each answer to its owner."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from mlserver.errors import MLServerError

Observe = Callable[[str, float], None]
"""Takes a measurement: the metric's name and its value."""

Infer = Callable[[np.ndarray], np.ndarray]

logger = logging.getLogger("mlserver.tinyvit")


class QueueFull(MLServerError):
    """Too much is waiting already; the same request may succeed a little later."""

    def __init__(self, max_queue: int) -> None:
        super().__init__(
            f"The server is busy: {max_queue} images are waiting, which is all it takes in at "
            f"once. Try again in a moment.",
            503,
        )


class Closed(MLServerError):
    """The model is being unloaded and takes no further request."""

    def __init__(self) -> None:
        super().__init__("The model is being unloaded. Try again in a moment.", 503)


class EngineFailed(MLServerError):
    """The engine raised on a batch; details are in the log."""

    def __init__(self) -> None:
        super().__init__("The engine failed on these images; the server's log says why.", 500)


@dataclass(eq=False)
class _Item:
    pixels: np.ndarray
    answer: "asyncio.Future[np.ndarray]"
    arrived: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Turn:
    """Of a batch in the engine: when one of its streams took it."""

    started: float = 0.0


class Batcher:
    """Feeds an engine with what waits, at most `max_batch_size` images at a time (rounded up to as
    many in each lane) in the order of their arrival.

    `infer` maps `[N,...]` to `[N,...]`, row for row, and computes as many as `streams` calls at
    once, those that came first. `lanes` calls of it are made at once, each on a thread, with an
    even part of the images and at most `share` of them (by default all); more than there are
    streams, so that none of these idles until Python has its next batch ready. `alone`, if given,
    is the engine undivided, and takes the place of `infer` for one image, or fewer than there are
    streams. With `max_batch_time` (seconds) the first image waits up to that long for others.
    """

    def __init__(
        self,
        infer: Infer,
        max_batch_size: int,
        max_batch_time: float,
        max_queue: int,
        observe: Observe = lambda name, value: None,
        streams: int = 1,
        lanes: int = 1,
        share: int | None = None,
        alone: Infer | None = None,
    ) -> None:
        self._infer = infer
        self._alone = alone or infer
        self._streams = streams
        self._lanes = lanes
        self._max_batch_size = max(1, max_batch_size)
        self._share = share or self._max_batch_size
        self._max_batch_time = max_batch_time
        self._max_queue = max_queue
        self._observe = observe
        self._waiting: deque[_Item] = deque()
        self._changed = asyncio.Event()
        self._admitted = 0
        self._idle = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="engine")
        self._running: set[asyncio.Task[None]] = set()
        self._turns: list[_Turn] = []
        self._task = asyncio.create_task(self._run())

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Takes a request of so many images in, decoding included; raises QueueFull or Closed,
        and MLServerError for a request that could never be taken in."""
        if images > self._max_queue:
            raise MLServerError(
                f"{images} images are too many for one request; at most {self._max_queue} are "
                f"accepted."
            )
        self.check_room(images)
        self._admitted += images
        try:
            yield
        finally:
            self._admitted -= images
            if not self._admitted:
                self._idle.set()

    def check_room(self, images: int) -> None:
        """Raises QueueFull or Closed where so many would not be taken in now."""
        if self._closing:
            raise Closed()
        if self._admitted + images > self._max_queue:
            raise QueueFull(self._max_queue)

    async def submit(self, pixels: np.ndarray) -> np.ndarray:
        """The engine's row for one image; raises EngineFailed. Cancelled, it is not computed."""
        item = _Item(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._changed.set()
        return await item.answer

    async def close(self) -> None:
        """Refuses what comes from now on, and returns when all that was taken in is answered."""
        self._closing = True
        while self._admitted:
            self._idle.clear()
            await self._idle.wait()
        tasks = [self._task, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        del self._infer, self._alone

    async def _run(self) -> None:
        while True:
            await self._until_worthwhile()
            if len(self._running) == self._lanes:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            if not self._running and len(self._waiting) < max(2, self._streams):
                await self._answer(self._next_batch(self._max_batch_size), self._alone)
            else:
                batch = self._next_batch(self._part())
                task = asyncio.create_task(self._answer(batch, self._infer))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _part(self) -> int:
        """How many images the next lane takes: more would make the others wait for it."""
        idle = self._lanes - len(self._running)
        return min(self._share, math.ceil(len(self._waiting) / idle))

    def _next_batch(self, size: int) -> Sequence[_Item]:
        """Takes so many; fewer where clients have gone away."""
        batch: list[_Item] = []
        while self._waiting and len(batch) < size:
            item = self._waiting.popleft()
            if not item.answer.done():
                batch.append(item)
        if batch:
            self._observe("queue_length_images", len(batch) + len(self._waiting))
        return batch

    async def _answer(self, batch: Sequence[_Item], infer: Infer) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        turn = _Turn()
        self._turns.append(turn)
        self._take_turns()
        try:
            answers = await loop.run_in_executor(self._threads, _forward, batch, infer)
            self._measure(batch, turn)
        except Exception:
            logger.exception("The engine failed on a batch of %d images.", len(batch))
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(EngineFailed())
        else:
            for item, answer in zip(batch, answers, strict=True):
                if not item.answer.done():
                    item.answer.set_result(answer)
        finally:
            self._turns.remove(turn)
            self._take_turns()

    def _take_turns(self) -> None:
        for turn in self._turns[: self._streams]:
            turn.started = turn.started or time.monotonic()

    def _measure(self, batch: Sequence[_Item], turn: _Turn) -> None:
        self._observe("batch_size_images", len(batch))
        self._observe("engine_seconds", time.monotonic() - turn.started)
        for item in batch:
            self._observe("queue_seconds", turn.started - item.arrived)

    async def _until_worthwhile(self) -> None:
        """Returns when the batch is full, or its first image has waited `max_batch_time`."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        deadline = self._waiting[0].arrived + self._max_batch_time
        while len(self._waiting) < self._max_batch_size:
            patience = deadline - time.monotonic()
            if patience <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), patience)
            except asyncio.TimeoutError:
                return


def _forward(batch: Sequence[_Item], infer: Infer) -> np.ndarray:
    answers = infer(np.stack([item.pixels for item in batch]))
    if len(answers) != len(batch):
        raise ValueError(f"{len(answers)} answers for {len(batch)} images")
    return answers
