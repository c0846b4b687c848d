"""Decodes images in child processes: which image when, and with how much memory.

One pool serves all models of a server. It has one decoder more than there are threads, and
expensive images use at most as many decoders as threads, so small images never wait for them.
"""

import asyncio
import bisect
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from mlserver_timm.errors import EngineUnavailable, InvalidImage, ModelClosing
from mlserver_timm.images.limits import (
    EXPENSIVE_BYTES,
    EXPENSIVE_PIXELS,
    MEBIBYTE,
    cpu_seconds,
    memory_for_file,
)
from mlserver_timm.images.processes import DecoderProcess, Supervisor, exit_status
from mlserver_timm.images.sources import ImageSource
from mlserver_timm.images.transforms import EvaluationTransform

STANDING_MEMORY = 24 * MEBIBYTE
"""Bytes that each decoder may use without asking, enough for images of 2 megapixels."""

PATIENCE = 10.0
"""Seconds that decoding may take beyond its CPU time: a decoder may wait for a core."""

WATCH_INTERVAL = 0.5
"""Seconds between two looks at the decoders: how many there are, and how long each has worked."""

START_TIMEOUT = 60.0
"""Seconds in which a first image must be decoded before a model is ready."""

RESTART_DELAY = 1.0
"""Seconds until a supervisor that ended is replaced; one that cannot start then costs little."""

TOO_SLOW = (
    "The image takes too long to decode: save it again, with fewer pixels or as baseline JPEG."
)

logger = logging.getLogger("mlserver.tinyvit")

T = TypeVar("T")


@dataclass(frozen=True)
class DecoderLimits:
    """Threads and memory that the images of a model may use at the same time."""

    threads: int
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class Decoded:
    """An image as the network takes it."""

    pixels: np.ndarray
    """uint8 `[H,W,3]`."""
    seconds: float
    """Time that decoding and resizing took."""


@dataclass(eq=False)
class _Job:
    """One image, waiting or being decoded."""

    number: int
    """In the order of arrival."""
    payload: bytes | memoryview
    """The file, or the array's bytes."""
    request: dict[str, Any]
    """The decoder's request, without the memory grant."""
    shape: tuple[int, int, int]
    """Height, width and channels of the pixels that the network takes."""
    images: int
    """Number of images in work, which share the threads."""
    result: "asyncio.Future[Decoded]"
    is_expensive: bool = False
    memory: int = 0
    """Bytes that an expensive image needs."""
    started: float = 0.0
    was_killed: bool = False
    was_restarted: bool = False


class DecoderPool:
    """Decodes images for one event loop; use it from that loop's thread."""

    def __init__(
        self,
        limits: DecoderLimits,
        on_restart: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
    ) -> None:
        """`on_restart` is called when a decoder has ended unexpectedly and is replaced."""
        self._set_limits(limits)
        self._on_restart = on_restart
        self._patience = patience
        self._job_count = 0
        self._engine_calls = 0
        self._waiting: list[_Job] = []
        """In the order of arrival."""
        self._idle: list[DecoderProcess] = []
        self._busy: dict[DecoderProcess, _Job] = {}
        self._retired: set[DecoderProcess] = set()
        """Decoders with other limits than today's, which end after their image."""
        self._supervisor: Supervisor | None = None
        self._filling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    async def start(self) -> None:
        """Start the processes, which are ready a moment later."""
        await self._start_supervisor()
        self._watch()

    async def check(self) -> None:
        """Decode an image; raise EngineUnavailable if that does not work."""
        transform = EvaluationTransform((8, 8), "bicubic", 1.0, "center", (0, 0, 0))
        image = np.zeros((8, 8, 3), np.uint8)
        try:
            await asyncio.wait_for(self.decode(image, transform, 64), START_TIMEOUT)
        except asyncio.TimeoutError:
            raise EngineUnavailable(
                "The processes that decode images do not start; the messages above say why."
            ) from None

    async def decode(
        self, source: ImageSource, transform: EvaluationTransform, max_pixels: int, images: int = 1
    ) -> Decoded:
        """Return the pixels of an image, uint8 `[H,W,3]`, as `transform` makes them.

        `images` is how many images are in work, which share the threads. Raises InvalidImage if
        the image is damaged, unsupported, or takes too much memory or time, and ModelClosing. If
        the caller is cancelled, the image is not decoded, or its pixels are dropped.
        """
        if self._is_closing:
            raise ModelClosing()
        job = self._new_job(source, transform, max_pixels, images)
        del source
        self._enqueue(job)
        self._dispatch()
        try:
            return await job.result
        finally:
            del job  # an exception refers to this frame, and the job's result to the exception

    @contextlib.contextmanager
    def engine_call(self) -> Iterator[None]:
        """Count a call of a model's engine, which uses a core."""
        self._engine_calls += 1
        try:
            yield
        finally:
            self._engine_calls -= 1
            self._dispatch()

    def resize(self, limits: DecoderLimits) -> None:
        """Use other limits: each decoder is replaced when it is idle."""
        if limits == self._limits:
            return
        self._set_limits(limits)
        for job in self._waiting:  # else one that needs more would block all others
            job.memory = min(job.memory, self._max_image_memory)
        self._retired.update(self._busy, self._idle)
        for decoder in self._idle:
            self._end(decoder)
        self._idle.clear()
        self._spawn(self._fill())

    def _set_limits(self, limits: DecoderLimits) -> None:
        self._limits = limits
        self._size = limits.threads + 1
        """Number of decoders."""
        self._standing_memory = min(STANDING_MEMORY, limits.memory // (2 * self._size))
        """Bytes that each decoder always keeps."""
        self._max_image_memory = limits.memory - self._standing_memory * limits.threads
        """Bytes that one image may use while the other decoders keep their standing memory."""

    async def close(self) -> None:
        """End all processes; images that are not decoded yet are answered with ModelClosing."""
        self._is_closing = True
        if self._timer:
            self._timer.cancel()
        for job in (*self._waiting, *self._busy.values()):
            resolve(job.result, ModelClosing())
        for decoder in (*self._idle, *self._busy):
            decoder.close()
        self._waiting.clear()
        self._idle.clear()
        if self._supervisor:
            await self._supervisor.close()

    def _new_job(
        self, source: ImageSource, transform: EvaluationTransform, max_pixels: int, images: int
    ) -> _Job:
        self._job_count += 1
        shape: tuple[int, ...] | None = None
        payload: bytes | memoryview
        if isinstance(source, np.ndarray):
            shape, payload = source.shape, np.ascontiguousarray(source).data.cast("B")
        else:
            payload = source
        request = {
            "transform": vars(transform),
            "max_pixels": max_pixels,
            "shape": shape,
            "size": len(payload),
        }
        result = asyncio.get_running_loop().create_future()
        network_shape = (*transform.size, 3)
        job = _Job(self._job_count, payload, request, network_shape, images, result)
        if len(payload) > EXPENSIVE_BYTES:
            least = memory_for_file(len(payload), "array")
            if least > self._max_image_memory:
                raise InvalidImage(self._too_much_memory(least))
            job.is_expensive = True
            job.memory = min(memory_for_file(len(payload)), self._max_image_memory)
        return job

    def _enqueue(self, job: _Job) -> None:
        """Queue an image by its number."""
        bisect.insort(self._waiting, job, key=lambda each: each.number)

    def _dispatch(self) -> None:
        """Send images that wait to idle decoders; drop those whose clients have left."""
        self._waiting = [job for job in self._waiting if not job.result.done()]
        while self._idle and (job := self._next_job()):
            decoder = self._idle.pop()
            self._busy[decoder] = job
            job.started = time.monotonic()
            decoder.share(job.payload, job.shape)
            decoder.send(job.request | self._grant(job))

    def _next_job(self) -> _Job | None:
        """Take the image that came first of those that may start now.

        While decoders and engines use all cores, one small and one expensive image are decoded at
        the same time: more would only delay the images that are further on.
        """
        is_crowded = len(self._busy) + self._engine_calls > self._limits.threads
        busy_kinds = {job.is_expensive for job in self._busy.values()} if is_crowded else set()
        expensive = next((job for job in self._waiting if job.is_expensive), None)
        may_start = expensive and self._has_room(expensive)
        for job in self._waiting:
            has_room = not job.is_expensive or (job is expensive and may_start)
            if has_room and job.is_expensive not in busy_kinds:
                self._waiting.remove(job)
                return job
        return None

    def _has_room(self, job: _Job) -> bool:
        """Return whether an expensive image may use a decoder, and the memory that it needs."""
        others = [each for each in self._busy.values() if each.is_expensive and each is not job]
        if len(others) >= self._limits.threads:
            return False
        standing = self._standing_memory * (self._size - len(others) - 1)
        return sum(each.memory for each in others) + standing + job.memory <= self._limits.memory

    def _memory_of(self, job: _Job) -> int:
        return job.memory if job.is_expensive else self._standing_memory

    def _grant(self, job: _Job) -> dict[str, Any]:
        return {
            "grant": self._memory_of(job),
            "max_grant": self._max_image_memory,
            "is_expensive": job.is_expensive,
            "threads": max(1, self._limits.threads // job.images),
        }

    def answered(self, decoder: DecoderProcess, answer: dict[str, Any]) -> None:
        """Handle a decoder's message: a result, an error, or a request for memory."""
        job = self._busy[decoder]
        if "needs" in answer:
            self._decide(decoder, job, answer["needs"])
            return
        if "error" not in answer:
            resolve(job.result, Decoded(decoder.pixels(job.shape), answer["seconds"]))
        elif answer["may_lack_memory"] and self._memory_of(job) < self._max_image_memory:
            job.is_expensive, job.memory = True, self._max_image_memory
            self._enqueue(job)
        else:
            resolve(job.result, InvalidImage(answer["error"] or self._too_much_memory()))
        if answer["is_last"]:
            self._retired.add(decoder)
        self._release(decoder)

    def _decide(self, decoder: DecoderProcess, job: _Job, memory: int) -> None:
        """Grant the memory that a decoder asks for, or queue its image until the memory is free."""
        is_first = job.is_expensive or not any(each.is_expensive for each in self._waiting)
        job.is_expensive, job.memory = True, memory
        if memory > self._max_image_memory:
            resolve(job.result, InvalidImage(self._too_much_memory(memory)))
        elif is_first and not job.result.done() and self._has_room(job):
            decoder.send(self._grant(job))
            return
        decoder.send({})
        if len(job.payload) > EXPENSIVE_BYTES:  # which stay in the decoder's shared memory
            self._retired.add(decoder)
        self._enqueue(job)
        self._release(decoder)

    def _release(self, decoder: DecoderProcess) -> None:
        """Make a decoder idle."""
        del self._busy[decoder]
        if decoder in self._retired:
            self._end(decoder)
            self._spawn(self._fill())
        else:
            self._idle.append(decoder)
        self._dispatch()

    def _end(self, decoder: DecoderProcess) -> None:
        """End a decoder without work, also one that was stopped."""
        decoder.close()
        if self._supervisor:
            self._supervisor.kill(decoder)

    def _too_much_memory(self, memory: int | None = None) -> str:
        takes = f"{-(-memory // MEBIBYTE)} MiB of memory" if memory else "too much memory"
        return (
            f"Decoding the image takes {takes}: the setting max_decode_memory allows "
            f"{self._max_image_memory // MEBIBYTE} MiB for one image. Send it with fewer pixels, "
            f"or as baseline JPEG."
        )

    def decoder_ended(self, decoder: DecoderProcess) -> None:
        """Replace a decoder and answer its image."""
        job = self._busy.pop(decoder, None)
        if decoder in self._idle:
            self._idle.remove(decoder)
        if self._is_closing:
            return
        if job or decoder not in self._retired:
            self._spawn(self._explain(decoder, job))
        self._retired.discard(decoder)
        self._spawn(self._fill())
        self._dispatch()  # an image may have waited for this decoder's memory

    async def _explain(self, decoder: DecoderProcess, job: _Job | None) -> None:
        """Answer the image of a decoder by how the process has ended."""
        status = await exit_status(decoder)
        self._on_restart()
        if job and job.was_killed or status == -signal.SIGPROF:
            error = TOO_SLOW
        else:
            reason = signal.Signals(-status).name if status and status < 0 else f"status {status}"
            logger.error("An image decoder ended unexpectedly (%s) and is replaced.", reason)
            error = (
                f"The image crashed its decoder ({reason}): it is damaged, or takes more memory "
                f"than the machine has. Save it again with another program."
            )
        if job and status is None and not job.was_killed and not job.was_restarted:
            job.was_restarted = True  # all decoders have ended, so the image is not to blame
            self._enqueue(job)
            self._dispatch()
        elif job:
            resolve(job.result, InvalidImage(error))

    def supervisor_ended(self) -> None:
        """Start another supervisor."""
        if not self._is_closing:
            self._supervisor = None
            logger.error("The process that starts image decoders has ended and is replaced.")
            self._spawn(self._restart_supervisor())

    async def _restart_supervisor(self) -> None:
        while not (self._supervisor or self._is_closing):
            await asyncio.sleep(RESTART_DELAY)
            try:
                await self._start_supervisor()
            except OSError as error:
                logger.error("The process that starts image decoders cannot start: %s.", error)

    async def _start_supervisor(self) -> None:
        supervisor = Supervisor(self)
        await supervisor.start()
        self._supervisor = supervisor
        await self._fill()

    async def _fill(self) -> None:
        """Start decoders until there are as many as there should be."""
        async with self._filling:
            while (
                (supervisor := self._supervisor)
                and not self._is_closing
                and len(self._idle) + len(self._busy.keys() - self._retired) < self._size
            ):
                try:
                    decoder = await supervisor.start_decoder()
                except OSError:  # no supervisor, descriptor or memory now; _watch tries again
                    return
                self._idle.append(decoder)
                self._dispatch()

    def _watch(self) -> None:
        """End decoders that take longer than their CPU time explains: they are stopped or hang.
        Start those that are missing."""
        now = time.monotonic()
        for decoder, job in self._busy.items():
            pixels = job.request["max_pixels"] if job.is_expensive else EXPENSIVE_PIXELS
            patience = self._patience + 3 * cpu_seconds(pixels, 1)
            if self._supervisor and now > job.started + patience:
                job.was_killed = True
                self._supervisor.kill(decoder)
                if now > job.started + patience + PATIENCE:
                    self._supervisor.kill_all()  # the supervisor hangs too
        self._spawn(self._fill())
        self._timer = asyncio.get_running_loop().call_later(WATCH_INTERVAL, self._watch)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class SharedPool:
    """The pool of a server, which is there while any model uses it."""

    def __init__(self) -> None:
        self._pool: DecoderPool | None = None
        self._users: list[DecoderLimits] = []
        self._starting = asyncio.Lock()

    async def join(self, limits: DecoderLimits, on_restart: Callable[[], None]) -> DecoderPool:
        """Return the pool, which allows at least these limits; `leave` has to follow."""
        async with self._starting:
            if not self._pool:
                pool = DecoderPool(limits, on_restart)
                await pool.start()
                self._pool = pool
        self._users.append(limits)
        largest = self._largest()
        self._pool.resize(largest)
        if len(set(self._users)) > 1:
            logger.warning(
                "The models of this server differ in num_threads or max_decode_memory. They share "
                "the image decoders, which use the largest: %d threads and %d MiB.",
                largest.threads,
                largest.memory // MEBIBYTE,
            )
        return self._pool

    async def leave(self, limits: DecoderLimits) -> None:
        """End the use of the pool by one model; the last one ends the processes."""
        self._users.remove(limits)
        if self._users and self._pool:
            self._pool.resize(self._largest())
        elif self._pool:
            pool, self._pool = self._pool, None
            await pool.close()

    def _largest(self) -> DecoderLimits:
        return DecoderLimits(
            max(each.threads for each in self._users), max(each.memory for each in self._users)
        )


_shared_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, SharedPool] = WeakKeyDictionary()
"""MLServer makes models one by one and gives them nothing that they could share."""


def shared_pool() -> SharedPool:
    """Return the pool of the server that runs on this event loop."""
    return _shared_pools.setdefault(asyncio.get_running_loop(), SharedPool())


def resolve(future: "asyncio.Future[T]", result: T | Exception) -> None:
    """Set the result or the exception of a future, unless its caller was cancelled."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
