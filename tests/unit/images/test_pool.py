"""Real decoder processes: right pixels, a fault costs one image, nothing is left behind."""

import asyncio
import contextlib
import errno
import io
import operator
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.errors import EngineUnavailable, InvalidImage, ModelClosing
from mlserver_timm.images import pool as pool_module, processes, worker
from mlserver_timm.images.decode import open_file
from mlserver_timm.images.limits import (
    EXPENSIVE_BYTES,
    MEBIBYTE,
    memory_for_file,
    memory_for_image,
)
from mlserver_timm.images.pool import (
    STANDING_MEMORY,
    Decoded,
    DecoderLimits,
    DecoderPool,
    SharedPool,
)
from mlserver_timm.images.sources import ImageSource
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support import bombs
from tests.support.clients import CAT, assert_sentence, encoded
from tests.support.paths import ROOT
from tests.support.processes import children_of, is_running

TRANSFORM = EvaluationTransform((64, 56), "bicubic", 0.9, "center", (0, 0, 0))
OTHER_SIZE = EvaluationTransform((30, 100), "bicubic", 1.0, "center", (0, 0, 0))
LIMITS = DecoderLimits(threads=2, memory=384 * MEBIBYTE)
MAX_PIXELS = 64_000_000
SLOW = bombs.png(4, 4, extra=[bombs.png_chunk(b"tEXt")] * 600_000)
"""Pillow reads its chunks one by one, for seconds."""

GREEDY = bombs.lossless_webp(16_000, 4_000)
"""A gigabyte in 34 bytes."""

pytestmark = pytest.mark.timeout(60)

MANY = pytest.param(20, marks=pytest.mark.slow)
"""Faults in `make test-all`; `make test` has fewer."""


@asynccontextmanager
async def running(limits: DecoderLimits = LIMITS, **options: Any) -> AsyncIterator[DecoderPool]:
    """Yield a pool, which is closed afterwards and must leave no process."""
    pool = DecoderPool(limits, **options)
    await pool.start()
    await pool.check()
    supervisor = supervisor_pid(pool)
    family = [supervisor, *children_of(supervisor)]
    try:
        yield pool
    finally:
        family += children_of(supervisor)
        await pool.close()
    await until(lambda: not any(map(is_running, family)))
    assert pool._timer and pool._timer.cancelled()


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    async with running() as pool:
        yield pool


def supervisor_pid(pool: DecoderPool) -> int:
    supervisor = pool._supervisor
    assert supervisor
    return supervisor._process.pid


async def until(condition: Callable[[], object], within: float = 30) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), within)


def expected(image: Image.Image, transform: EvaluationTransform = TRANSFORM) -> np.ndarray:
    """Return the pixels that this process makes from a lossless file."""
    return transform(open_file(io.BytesIO(encoded(image))))


def coloured(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return an image that differs from those of other numbers everywhere."""
    noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(noise)


async def test_files_and_arrays_give_the_transforms_pixels(pool: DecoderPool) -> None:
    cat = Image.open(CAT).convert("RGB")
    rgba = np.dstack([np.asarray(cat), np.asarray(cat.convert("L"))])
    sources: list[tuple[ImageSource, Image.Image]] = [
        (encoded(cat), cat),
        (np.asarray(cat), cat),
        (np.asarray(cat.convert("L"))[:, :, None], cat.convert("L")),
        (rgba, Image.fromarray(rgba)),
        (np.asarray(cat)[::2, ::3], Image.fromarray(np.asarray(cat)[::2, ::3])),
        (encoded(cat.resize((2400, 1600))), cat.resize((2400, 1600))),
    ]

    for source, image in sources:
        for transform in (TRANSFORM, OTHER_SIZE):
            decoded = await pool.decode(source, transform, MAX_PIXELS)
            np.testing.assert_array_equal(decoded.pixels, expected(image, transform))
            assert decoded.seconds > 0


async def test_an_image_without_room_for_its_own_bytes_gets_more_memory() -> None:
    """Mapping them fails with OSError, not MemoryError."""
    image = coloured(0, (1300, 1000))
    limits = DecoderLimits(threads=7, memory=40 * MEBIBYTE)

    async with running(limits) as pool:
        assert pool._standing_memory < 1300 * 1000 * 3 < EXPENSIVE_BYTES
        decoded = await pool.decode(np.asarray(image), TRANSFORM, MAX_PIXELS)
        np.testing.assert_array_equal(decoded.pixels, expected(image))


async def test_a_tiff_with_a_tag_behind_its_end(pool: DecoderPool) -> None:
    """Pillow ignores the tag, as it does for a file on the disk."""
    data = bytearray(encoded(coloured(0), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    tags = data[start + 2 : start + 2 + 12 * count] + struct.pack("<HHII", 65000, 7, 100, 10**7)
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", count + 1) + tags + bytes(4)

    decoded = await pool.decode(bytes(data), TRANSFORM, MAX_PIXELS)
    np.testing.assert_array_equal(decoded.pixels, expected(coloured(0)))


def start(pool: DecoderPool, source: ImageSource, images: int = 1) -> "asyncio.Future[Decoded]":
    """Decode an image in the background; `images` are in work."""
    return asyncio.ensure_future(pool.decode(source, TRANSFORM, MAX_PIXELS, images))


async def assert_decoded(pool: DecoderPool, image: Image.Image) -> None:
    decoded = await pool.decode(encoded(image), TRANSFORM, MAX_PIXELS)
    np.testing.assert_array_equal(decoded.pixels, expected(image))


async def refusal(work: Awaitable[object]) -> str:
    """Return the error that an image gets."""
    with pytest.raises(InvalidImage) as error:
        await work
    assert_sentence(str(error.value))
    return str(error.value)


REFUSED: dict[str, tuple[bytes, str]] = {
    "words": (b"hello", "not a supported image"),
    "damaged": (encoded(coloured(1), "JPEG")[:2000], "damaged"),
    "too many pixels": (bombs.png(8001, 8000), "max_pixels"),
    "slow": (SLOW, "too long"),
    "greedy": (GREEDY, "max_decode_memory"),
    "damaged and large": (encoded(coloured(1, (1500, 1500)), "PNG")[:-5000], "damaged"),
}


async def test_refusals_and_what_comes_after_them(pool: DecoderPool) -> None:
    """Each refusal gives its reason, and the next image is decoded."""
    image = coloured(0)

    for data, words in REFUSED.values():
        assert words in await refusal(pool.decode(data, TRANSFORM, MAX_PIXELS))
        await assert_decoded(pool, image)


async def test_an_array_with_too_many_pixels_is_refused(pool: DecoderPool) -> None:
    array = np.zeros((501, 500, 3), np.uint8)
    sentence = await refusal(pool.decode(array, TRANSFORM, 250_000))
    assert "501" in sentence and "max_pixels allows 250000 pixels" in sentence


LARGE_FOR_128_MEBIBYTES: dict[str, tuple[ImageSource, str]] = {
    "half": (b"x" * 45 * MEBIBYTE, "not a supported image"),
    "most": (b"x" * 75 * MEBIBYTE, "not a supported image"),
    "all": (b"x" * 80 * MEBIBYTE, "max_decode_memory allows 85 MiB for one image"),
    "array": (np.zeros((4000, 5000, 3), np.uint8), "max_decode_memory"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", LARGE_FOR_128_MEBIBYTES)
async def test_a_file_that_takes_nearly_all_memory_does_not_wait_for_ever(kind: str) -> None:
    """One image may use 85 MiB of 128."""
    large, words = LARGE_FOR_128_MEBIBYTES[kind]

    async with running(DecoderLimits(threads=2, memory=128 * MEBIBYTE)) as pool:
        assert words in await refusal(pool.decode(large, TRANSFORM, MAX_PIXELS))


class Clients:
    """Clients that send images without a pause, and counts of the outcomes."""

    def __init__(self, pool: DecoderPool, count: int = 8) -> None:
        self.answered = self.wrong = 0
        self.refusals: list[str] = []
        self._pool = pool
        self._images = [coloured(number, (400, 300)) for number in range(count)]
        self._expected = [expected(image) for image in self._images]
        self._tasks = [asyncio.ensure_future(self._send(number)) for number in range(count)]

    async def _send(self, number: int) -> None:
        data = encoded(self._images[number])
        while True:
            try:
                decoded = await self._pool.decode(data, TRANSFORM, MAX_PIXELS, 8)
            except InvalidImage as error:
                self.refusals.append(str(error))
                continue
            self.answered += 1
            self.wrong += not np.array_equal(decoded.pixels, self._expected[number])

    async def progress(self, answers: int = 16) -> None:
        """Wait for that many further answers."""
        before = self.answered
        await until(lambda: self.answered >= before + answers, 60)

    async def stop(self) -> None:
        """End all clients; raise what any of them raised."""
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in done), done


@pytest.mark.parametrize("crashes", [6, MANY])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_costs_one_image(
    caplog: pytest.LogCaptureFixture, number: signal.Signals, crashes: int
) -> None:
    """Under load, all other answers are right, decoders are replaced, and each crash is logged."""
    restarts: list[int] = []

    async with running(on_restart=lambda: restarts.append(1)) as pool:
        clients = Clients(pool)
        for _ in range(crashes):
            await clients.progress(8)
            decoder = random.choice(children_of(supervisor_pid(pool)))
            os.kill(decoder, number)
            await until(lambda decoder=decoder: not is_running(decoder))
        await clients.progress()
        await until(lambda: len(restarts) == crashes)
        await until(lambda: len(children_of(supervisor_pid(pool))) == LIMITS.threads + 1)
        await clients.stop()
        await until(lambda: not pool._busy)
        assert len(children_of(supervisor_pid(pool))) == LIMITS.threads + 1
        assert clients.wrong == 0
        assert 1 <= len(clients.refusals) <= crashes, clients.refusals
        assert all(number.name in sentence for sentence in clients.refusals), clients.refusals
        assert caplog.text.count("An image decoder ended unexpectedly") == crashes


@pytest.mark.parametrize("times", [2, MANY])
@pytest.mark.parametrize(
    ("bomb", "words"), [(SLOW, "too long"), (GREEDY, "max_decode_memory")], ids=["cpu", "memory"]
)
async def test_an_image_beyond_a_limit_is_refused_alone(
    bomb: bytes, words: str, times: int, pool: DecoderPool
) -> None:
    clients = Clients(pool)
    for _ in range(times):
        sentence = await refusal(pool.decode(bomb, TRANSFORM, MAX_PIXELS))
        assert words in sentence
    await clients.progress()
    await clients.stop()
    assert (clients.wrong, clients.refusals) == (0, [])


@pytest.mark.timeout(260)
@pytest.mark.parametrize("times", [1, MANY])
async def test_a_stopped_decoder_is_replaced(times: int) -> None:
    async with running(patience=0.2) as pool:
        clients = Clients(pool)
        for _ in range(times):
            await clients.progress(8)
            decoder = random.choice(children_of(supervisor_pid(pool)))
            os.kill(decoder, signal.SIGSTOP)
            await until(lambda decoder=decoder: not is_running(decoder), 60)
        await clients.progress()
        await clients.stop()
        assert clients.wrong == 0
        assert len(clients.refusals) == times
        assert all("too long" in sentence for sentence in clients.refusals), clients.refusals


async def test_no_image_is_lost_when_the_supervisor_ends(pool: DecoderPool) -> None:
    """All decoders end with it. Each image is decoded by the next ones."""
    clients = Clients(pool)
    await clients.progress()
    for _ in range(2):
        await until(lambda: pool._supervisor)
        os.kill(supervisor_pid(pool), signal.SIGKILL)
        await clients.progress()
    await clients.stop()
    assert (clients.wrong, clients.refusals) == (0, [])


@pytest.mark.linux  # elsewhere decoders go on without their supervisor
async def test_an_image_during_which_all_decoders_end_twice_is_refused(pool: DecoderPool) -> None:
    """It may be the reason, so it is not decoded a third time."""
    large = bombs.progressive_jpeg(4000, 4000, 17)

    work = start(pool, large)
    for _ in range(2):
        await until(lambda: pool._busy)
        os.kill(supervisor_pid(pool), signal.SIGKILL)
        await until(lambda: not pool._busy)
    assert "crashed its decoder" in await refusal(work)


@pytest.mark.parametrize(
    "victim", [pytest.param("supervisor", marks=pytest.mark.linux), "decoders"]
)
async def test_processes_that_cannot_be_replaced_at_once_are_replaced_later(
    monkeypatch: pytest.MonkeyPatch, victim: str, pool: DecoderPool
) -> None:
    failures: list[int] = []

    def fail() -> None:
        failures.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    supervisor = supervisor_pid(pool)
    victims = [supervisor] if victim == "supervisor" else children_of(supervisor)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", fail)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not pool._idle and len(failures) >= 2)
    await assert_decoded(pool, coloured(0))


def test_a_supervisor_survives_a_lack_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(worker, "FORK_DELAY", 0)
    server, control = socket.socketpair()
    ours, theirs = socket.socketpair()
    with server, control, ours:
        for number in (1, 2):
            with theirs.dup() as other:
                socket.send_fds(server, [worker.NUMBER.pack(number)], [other.fileno()])
        theirs.close()
        supervisor = worker.Supervisor(control)
        supervisor._obey()
        supervisor._obey()
        assert ours.recv(1) == b"", "the descriptors are closed, so the server tries again"
        assert not supervisor._numbers


async def test_small_images_do_not_wait_for_expensive_ones(pool: DecoderPool) -> None:
    """Ten images that take seconds each hold two of three decoders."""
    expensive = bombs.progressive_jpeg(4000, 4000, 17)
    small = encoded(coloured(0))

    tasks = [start(pool, expensive, 10) for _ in range(10)]
    await until(lambda: len(pool._busy) == LIMITS.threads)
    for _ in range(20):
        decoded = await pool.decode(small, TRANSFORM, MAX_PIXELS, 11)
        np.testing.assert_array_equal(decoded.pixels, expected(coloured(0)))
    finished = sum(task.done() for task in tasks)
    await asyncio.gather(*tasks)
    assert finished < 10, "the small images waited for all expensive ones"


@pytest.mark.parametrize("engine_calls", [0, 2])
async def test_fewer_images_are_decoded_while_engines_use_the_cores(
    engine_calls: int, pool: DecoderPool
) -> None:
    """Then one small and one expensive image at a time, else as many as there are decoders."""
    small = encoded(coloured(0, (1400, 1400)))
    large = bombs.progressive_jpeg(2000, 2000, 3)

    with contextlib.ExitStack() as stack:
        for _ in range(engine_calls):
            stack.enter_context(pool.engine_call())
        images = [small, small, large, small, large, small]
        work = [start(pool, image, 6) for image in images]
        most = 0
        while not all(task.done() for task in work):
            busy = [len(job.payload) for job in pool._busy.values()]
            most = max(most, *(busy.count(len(image)) for image in (small, large)))
            await asyncio.sleep(0)
        await asyncio.gather(*work)
    assert (most == 1) == (engine_calls == 2)
    assert not pool._engine_calls


async def test_images_in_work_share_the_threads(pool: DecoderPool) -> None:
    for images, threads in ((1, 2), (2, 1), (8, 1)):
        job = pool._new_job(b"", TRANSFORM, MAX_PIXELS, images)
        assert pool._grant(job)["threads"] == threads


async def test_large_images_take_turns_within_the_memory() -> None:
    """Two of these do not fit together; with small ones between them all are decoded."""
    large = encoded(Image.new("RGB", (5000, 4000), "teal"), "JPEG")
    limits = DecoderLimits(threads=2, memory=192 * MEBIBYTE)

    async with running(limits) as pool:
        decoded = [pool.decode(large, TRANSFORM, MAX_PIXELS) for _ in range(5)]
        decoded += [pool.decode(encoded(coloured(i)), TRANSFORM, MAX_PIXELS) for i in range(20)]
        granted = []

        async def look() -> None:
            while True:
                expensive = [job.memory for job in pool._busy.values() if job.is_expensive]
                standing = pool._standing_memory * (LIMITS.threads + 1 - len(expensive))
                granted.append(sum(expensive) + standing)
                await asyncio.sleep(0.001)

        watch = asyncio.ensure_future(look())
        results = await asyncio.gather(*decoded)
        watch.cancel()
        assert max(granted) <= limits.memory
        for i, result in enumerate(results[5:]):
            np.testing.assert_array_equal(result.pixels, expected(coloured(i)))


async def test_an_image_that_needs_all_memory_is_not_starved() -> None:
    """Later expensive images wait for it, although there is memory for them."""
    width, height = 6000, 4000
    huge = encoded(Image.new("RGB", (width, height), "teal"), "JPEG")
    large = encoded(Image.new("RGB", (2000, 1500), "red"), "JPEG")
    memory = memory_for_file(len(huge), "JPEG") + memory_for_image("JPEG", "RGB", width, height)
    limits = DecoderLimits(threads=2, memory=memory + 2 * STANDING_MEMORY)

    async with running(limits) as pool:
        before = [start(pool, large) for _ in range(4)]
        first = start(pool, huge)
        after = [start(pool, large) for _ in range(12)]
        await until(lambda: any(job.memory == memory for job in pool._busy.values()))
        assert sum(task.done() for task in after) <= limits.threads
        await asyncio.gather(*before, first, *after)


async def test_clients_that_leave_do_not_disturb_others(pool: DecoderPool) -> None:
    """They leave before their image is sent, while it is decoded, or while it waits for memory."""
    sources = [
        encoded(coloured(1)),
        encoded(Image.new("RGB", (3000, 2000)), "JPEG"),
        encoded(coloured(2)) + bytes(EXPENSIVE_BYTES),
    ]

    clients = Clients(pool, 3)
    generator = random.Random(0)
    for number in range(60):
        source = sources[number % 3]
        task = start(pool, source)
        await asyncio.sleep(generator.choice([0, 0.001, 0.01, 0.05]))
        task.cancel()
    await clients.progress()
    await clients.stop()
    assert (clients.wrong, clients.refusals) == (0, [])
    await until(lambda: not pool._busy)
    assert not pool._waiting


async def test_limits_that_grow_leave_the_images_of_the_former_decoders(pool: DecoderPool) -> None:
    """A slow image in a retired decoder is refused; one whose supervisor ends is decoded again."""
    slow = start(pool, SLOW)
    await until(lambda: pool._busy)
    pool.resize(DecoderLimits(3, 512 * MEBIBYTE))
    assert "too long" in await refusal(slow)
    large = bombs.progressive_jpeg(4000, 4000, 17)
    image = start(pool, large)
    await until(lambda: pool._busy)
    pool.resize(DecoderLimits(2, 512 * MEBIBYTE))
    os.kill(supervisor_pid(pool), signal.SIGKILL)
    assert (await image).pixels.shape == (64, 56, 3)


async def test_an_image_that_waits_for_more_memory_than_is_left_is_refused(
    pool: DecoderPool,
) -> None:
    """After smaller limits, it blocks no other image."""
    huge = encoded(Image.new("RGB", (9000, 7000), "teal"), "JPEG")
    image = coloured(0, (1600, 1400))

    work = [start(pool, huge) for _ in range(2)]
    await until(lambda: any(job.memory > 200 * MEBIBYTE for job in pool._waiting))
    pool.resize(DecoderLimits(2, 192 * MEBIBYTE))
    await assert_decoded(pool, image)
    results = await asyncio.gather(*work, return_exceptions=True)
    (refused,) = (each for each in results if isinstance(each, InvalidImage))
    assert "max_decode_memory" in str(refused)


async def test_an_idle_decoder_keeps_no_large_image() -> None:
    """Here its image was taken back, because another large one is being decoded."""
    large = encoded(coloured(0, (3000, 2500)))

    async with running(DecoderLimits(2, 130 * MEBIBYTE)) as pool:
        tasks = [start(pool, large) for _ in range(2)]
        unopened = memory_for_file(len(large))
        await until(lambda: any(job.memory > unopened for job in pool._waiting))
        pool._waiting[0].result.cancel()  # its client leaves
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not pool._busy and len(pool._idle) == LIMITS.threads + 1)
        kept = [os.fstat(decoder.shared.fileno()).st_size for decoder in pool._idle]
        assert max(kept) < EXPENSIVE_BYTES

    # Room for both files, and then for one image and the other file only.


async def test_limits_that_grow_replace_the_decoders_without_a_loss(pool: DecoderPool) -> None:
    clients = Clients(pool)
    await clients.progress()
    before = set(children_of(supervisor_pid(pool)))
    await clients.stop()
    await until(lambda: len(pool._idle) == LIMITS.threads + 1)
    os.kill(min(before), signal.SIGSTOP)
    clients = Clients(pool)
    pool.resize(DecoderLimits(3, 512 * MEBIBYTE))
    await until(lambda: len(set(children_of(supervisor_pid(pool))) - before) == 4)
    await until(lambda: not before & set(children_of(supervisor_pid(pool))))
    await clients.progress()
    await clients.stop()
    assert (clients.wrong, clients.refusals) == (0, [])


async def test_without_memfd_images_pass_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    async with running() as pool:
        for number in range(10):
            await assert_decoded(pool, coloured(number))


async def test_where_fork_is_unsafe_decoders_are_new_interpreters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.platform = 'darwin'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with running() as pool:
        for data, words in (REFUSED["words"], REFUSED["slow"]):
            assert words in await refusal(pool.decode(data, TRANSFORM, MAX_PIXELS))
        await assert_decoded(pool, coloured(0))


async def test_decoders_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(pool_module, "START_TIMEOUT", 0.5)

    pool = DecoderPool(LIMITS)
    await pool.start()
    with pytest.raises(EngineUnavailable, match="do not start"):
        await pool.check()
    await pool.close()


async def test_closing_a_pool_answers_waiting_requests(pool: DecoderPool) -> None:
    source = encoded(Image.new("RGB", (3000, 2000)), "JPEG")
    tasks = [start(pool, source) for _ in range(9)]
    await until(lambda: pool._busy)
    await pool.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in results} == {ModelClosing}
    with pytest.raises(ModelClosing):
        await pool.decode(source, TRANSFORM, MAX_PIXELS)


async def test_models_share_one_pool_until_the_last_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small, large = DecoderLimits(1, 256 * MEBIBYTE), DecoderLimits(2, 384 * MEBIBYTE)

    shared = SharedPool()
    first = await shared.join(small, lambda: None)
    assert await shared.join(small, lambda: None) is first
    assert "differ" not in caplog.text
    assert await shared.join(large, lambda: None) is first
    assert caplog.text.count("2 threads and 384 MiB") == 1
    supervisor = supervisor_pid(first)
    await until(lambda: len(children_of(supervisor)) == 3)
    await shared.leave(small)
    await shared.leave(large)
    await until(lambda: len(children_of(supervisor)) == 2)
    await first.check()
    await shared.leave(small)
    await until(lambda: not is_running(supervisor))
    second = await shared.join(small, lambda: None)
    await second.check()
    await shared.leave(small)


async def test_a_pool_that_cannot_start_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: socket.socket) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    shared = SharedPool()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_start_process", fail)
        with pytest.raises(OSError, match="temporarily"):
            await shared.join(LIMITS, lambda: None)
    await (await shared.join(LIMITS, lambda: None)).check()
    await shared.leave(LIMITS)


SERVER = f"""
import asyncio, sys
sys.path[:0] = [{str(ROOT / "tinyvit")!r}, {str(ROOT)!r}]
from tests.unit.images.test_pool import *

async def scenario():
    pool = DecoderPool(LIMITS)
    await pool.start()
    await pool.check()
    clients = Clients(pool)
    start(pool, SLOW)
    print(supervisor_pid(pool), flush=True)
    await asyncio.sleep(3600)

asyncio.run(scenario())
"""


def test_no_decoder_outlives_a_server_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        supervisor = int(server.stdout.readline())
        family = [supervisor, *children_of(supervisor)]
        assert len(family) == 2 + LIMITS.threads
        server.kill()
        asyncio.run(until(lambda: not any(map(is_running, family)), 5))


def resources() -> tuple[int, int]:
    """Return how many descriptors and memory mappings this process has."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("memfd:pixels")


@pytest.mark.slow
async def test_a_thousand_faults_leave_nothing_behind(pool: DecoderPool) -> None:
    source = encoded(coloured(0))
    restarts: list[int] = []
    pool._on_restart = lambda: restarts.append(1)
    await until(lambda: len(children_of(supervisor_pid(pool))) == LIMITS.threads + 1)
    # A decoder's memory is mapped when it is first used.
    await asyncio.gather(*(pool.decode(source, TRANSFORM, MAX_PIXELS) for _ in range(9)))
    before = resources()
    for number in range(1000):
        await pool.decode(source, TRANSFORM, MAX_PIXELS)
        victims = children_of(supervisor_pid(pool))
        os.kill(victims[number % len(victims)], signal.SIGKILL)
        await until(lambda number=number: len(restarts) > number)
    await pool.decode(source, TRANSFORM, MAX_PIXELS)
    await until(lambda: len(children_of(supervisor_pid(pool))) == LIMITS.threads + 1)
    # Fewer if a new decoder was not used yet, or an earlier test's garbage was collected.
    await until(lambda: all(map(operator.le, resources(), before)))
    everything = Path(f"/proc/{supervisor_pid(pool)}/task/{supervisor_pid(pool)}/children")
    assert len(everything.read_text().split()) == LIMITS.threads + 1, "zombies"


def test_worker_imports_neither_mlserver_nor_torch() -> None:
    """MLServer alone would take a second and 100 MiB."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tinyvit')!r})\n"
        "import mlserver_timm.images.worker\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} "
        "& {'mlserver', 'torch', 'timm', 'openvino', 'fastapi', 'asyncio', 'pydantic'}))"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == ""


def test_import_needs_nothing_that_windows_lacks() -> None:
    """Decoding needs Unix; the other modules are usable without, for example in an editor."""
    program = (
        f"import asyncio, ctypes, mlserver, sys; sys.path.insert(0, {str(ROOT / 'tinyvit')!r})\n"
        "sys.platform, ctypes.CDLL = 'win32', None\n"
        "sys.modules |= dict.fromkeys(['fcntl', 'resource'])\n"
        "import mlserver_timm.runtime, mlserver_timm.server, mlserver_timm.checkpoints.export\n"
        "import mlserver_timm.images.worker"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
