"""Threads that decode images, within the process' memory, and what is done about a stuck one."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mlserver_timm.images.decode import ImageSource, Undecoded
from mlserver_timm.images.decode_budget import BUDGET
from mlserver_timm.images.idle_threads import IdleThreads
from mlserver_timm.images.transforms import EvaluationTransform

LAST_RESORT = 3
"""Time-outs of a request that a thread may be at one image before its process ends."""

SLOW_SECONDS = 1.0
"""Decoding that takes less is never called stuck, however short the timeout."""

LAST_RESORT_SECONDS = 10.0
"""At least so many: on a machine that has too much to do, a large image may take some."""

WATCH_INTERVAL = 0.5
"""Seconds."""

logger = logging.getLogger("mlserver.tinyvit")


@dataclass(frozen=True)
class DecoderLimits:
    """What decoding may take."""

    threads: int
    memory: int
    """Bytes, together with all other models in the process."""
    timeout: float
    """Seconds for one image; a thread that takes longer is stuck."""


class MemoryTaken(Exception):
    """So many bytes are not there now."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Decoders:
    """Turns images into the network's pixels, each on a thread.

    Nothing in Python ends a thread. Headers tell beforehand what would take too long, but where a
    decoder hangs all the same, the process has to end so that its supervisor starts it anew.
    """

    def __init__(
        self,
        transform: EvaluationTransform,
        limits: DecoderLimits,
        observe: Callable[[float], None],
    ) -> None:
        """`observe` takes the seconds that each image took."""
        self._transform = transform
        self._limits = limits
        self._observe = observe
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="decode")
        self._started: dict[int, float] = {}

    async def decode(self, source: ImageSource, images: int) -> np.ndarray:
        """uint8 `[H,W,3]`, once there is memory for it; raises what the image raises. The threads
        are shared among so many images that are at work."""
        helpers = IdleThreads(self._threads, max(0, self._limits.threads // images - 1))
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self.decode_now, source, helpers)
        except MemoryTaken as wanted:
            size = wanted.size
        await BUDGET.wait(size, self._limits.memory)
        work = self._threads.submit(self._decode_granted, source, helpers)
        work.add_done_callback(lambda _: BUDGET.give_back(size))  # also where it never began
        return await asyncio.wrap_future(work)

    def decode_now(self, source: ImageSource, helpers: IdleThreads | None = None) -> np.ndarray:
        """The same on the calling thread, at once; raises MemoryTaken where there is none now."""
        with self._watched():
            image = source.open()
            size = self._transform.memory(image)
            if not BUDGET.take(size, self._limits.memory):
                raise MemoryTaken(size)
            try:
                return self._timed(image, helpers)
            finally:
                BUDGET.give_back(size)

    def _decode_granted(self, source: ImageSource, helpers: IdleThreads) -> np.ndarray:
        with self._watched():
            return self._timed(source.open(), helpers)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The header is read within, too: also that must come to an end."""
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._started[thread]

    def _timed(self, image: Undecoded, helpers: IdleThreads | None) -> np.ndarray:
        started = time.monotonic()
        try:
            return self._transform(image, helpers)
        finally:
            self._observe(time.monotonic() - started)

    def is_stuck(self) -> bool:
        """Whether a thread has been at one image for longer than a request may take, and than any
        image does."""
        return self._longest() > max(self._limits.timeout, SLOW_SECONDS)

    def _longest(self) -> float:
        """Seconds that the slowest thread has been at its image."""
        return time.monotonic() - min(self._started.copy().values(), default=time.monotonic())

    async def until_beyond_help(self) -> None:
        """Returns when a thread has been stuck for so long that the process has to end."""
        last_resort = max(LAST_RESORT_SECONDS, LAST_RESORT * self._limits.timeout)
        told = False
        while (seconds := self._longest()) <= last_resort:
            if self.is_stuck() and not told:
                logger.error(
                    "A thread has been decoding one image for %.0f seconds. The model is not "
                    "ready, and unless the thread comes back, this process ends after %.0f.",
                    seconds,
                    last_resort,
                )
            told = self.is_stuck()
            await asyncio.sleep(WATCH_INTERVAL)
        logger.critical(
            "A thread has been decoding one image for %.0f seconds and cannot be stopped. This "
            "process ends, so that its supervisor starts it anew.",
            seconds,
        )

    def close(self) -> None:
        """Takes no further image; what has begun goes on."""
        self._threads.shutdown(wait=False)
