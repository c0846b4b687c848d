"""Memory for decoding: never more than the limit, in order, and given back whatever happens."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import pytest

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.decode import EncodedImage, Undecoded, UndecodedArray
from mlserver_timm.images.decode_budget import LARGE, DecodeBudget
from mlserver_timm.images.decoders import DecoderLimits, Decoders
from mlserver_timm.images.idle_threads import IdleThreads
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support import bombs
from tests.support.clients import assert_sentence, image_file

LIMIT = 1600
MEGABYTE = 2**20
TRANSFORM = EvaluationTransform((64, 64), "bicubic", 1.0, "center", (0, 0, 0))


def test_one_that_never_fits() -> None:
    with pytest.raises(InvalidImage, match="MiB") as refusal:
        DecodeBudget().take(500 * MEGABYTE, 384 * MEGABYTE)
    assert_sentence(str(refusal.value))


def test_no_more_than_there_is() -> None:
    budget = DecodeBudget()
    assert budget.take(LIMIT - 1, LIMIT)
    assert not budget.take(2, LIMIT)
    assert budget.take(1, LIMIT)
    budget.give_back(LIMIT)
    assert budget.take(LIMIT, LIMIT)


def waiting(scenario: Callable[[DecodeBudget], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(DecodeBudget()), 20))  # type: ignore[arg-type]


def test_in_order() -> None:
    async def scenario(budget: DecodeBudget) -> None:
        assert budget.take(LIMIT, LIMIT)
        order: list[int] = []

        async def wait(size: int) -> None:
            await budget.wait(size, LIMIT)
            order.append(size)

        tasks = [asyncio.create_task(wait(size)) for size in (900, 800, 100)]
        await asyncio.sleep(0.01)
        assert not order
        budget.give_back(LIMIT)
        await asyncio.sleep(0.01)
        assert order == [900]
        budget.give_back(900)
        await asyncio.gather(*tasks)
        assert order == [900, 800, 100]

    waiting(scenario)


def test_only_small_ones_pass_those_who_wait() -> None:
    async def scenario(budget: DecodeBudget) -> None:
        assert budget.take(800, LIMIT)
        task = asyncio.create_task(budget.wait(LIMIT, LIMIT))
        await asyncio.sleep(0.01)
        assert budget.take(100, LIMIT)
        assert not budget.take(101, LIMIT)
        budget.give_back(900)
        await task

    waiting(scenario)


@pytest.mark.parametrize("moment", ["waiting", "granted", "told"])
def test_given_up(moment: str) -> None:
    """Whoever goes away while waiting, or at the moment that it is granted, keeps nothing."""

    async def scenario(budget: DecodeBudget) -> None:
        assert budget.take(LIMIT, LIMIT)
        task = asyncio.create_task(budget.wait(LIMIT, LIMIT))
        await asyncio.sleep(0.01)
        if moment != "waiting":
            budget.give_back(LIMIT)
        if moment == "told":  # after the grant is told, before the task goes on
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            task.cancel()
        await asyncio.wait([task])
        if moment == "waiting":
            budget.give_back(LIMIT)
        await asyncio.sleep(0.01)
        assert task.cancelled() and budget.take(LIMIT, LIMIT)

    waiting(scenario)


@dataclass(frozen=True)
class Work:
    """An image that says how much memory it takes, and notes how much is taken at once."""

    size: int
    ledger: "Ledger"

    def open(self) -> Undecoded:
        return UndecodedArray(np.zeros((1, 1, 3), np.uint8))


class Ledger:
    """Stands for a transform: sizes in place of pixels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.peak = 0

    def use(self, size: int) -> None:
        with self._lock:
            self._now += size
            self.peak = max(self.peak, self._now)
        time.sleep(0.001)
        with self._lock:
            self._now -= size


class WorkTransform:
    def memory(self, image: Work) -> int:
        return image.size

    def __call__(self, image: Work, helpers: IdleThreads) -> np.ndarray:
        image.ledger.use(image.size)
        if image.size % 7 == 0:
            raise InvalidImage("The image is none.")
        return np.zeros((1, 1, 3), np.uint8)


class OpenWork(Work):
    def open(self) -> "OpenWork":  # type: ignore[override]
        return self


def test_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused, given up or answered: never over the limit, and all comes back."""
    budget = DecodeBudget()
    monkeypatch.setattr("mlserver_timm.images.decoders.BUDGET", budget)
    limits = DecoderLimits(threads=8, memory=LIMIT, timeout=30)
    ledger, dice = Ledger(), random.Random(0)

    async def scenario() -> None:
        decoders = Decoders(WorkTransform(), limits, lambda _: None)  # type: ignore[arg-type]
        tasks = [
            asyncio.create_task(decoders.decode(OpenWork(dice.randint(1, LIMIT), ledger), 1))
            for _ in range(400)
        ]
        for task in dice.sample(tasks, 100):
            await asyncio.sleep(0.001)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} == {np.ndarray, InvalidImage, asyncio.CancelledError}
        decoders.close()

    asyncio.run(scenario())
    assert LIMIT // 2 < ledger.peak <= LIMIT
    deadline = time.monotonic() + 5
    while not budget.take(LIMIT, LIMIT):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_memory_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr("mlserver_timm.memory._MALLOC_TRIM", trims.append)
    budget = DecodeBudget()
    for size in (LARGE - 1, LARGE):
        assert budget.take(size, 2 * LARGE)
        budget.give_back(size)
    assert trims == [0]


@pytest.mark.parametrize("hangs", ["header", "pixels"])
def test_stuck(monkeypatch: pytest.MonkeyPatch, hangs: str) -> None:
    """A thread that does not come back is told of, and in the end nothing is waited for."""
    monkeypatch.setattr("mlserver_timm.images.decoders.LAST_RESORT_SECONDS", 0.6)
    monkeypatch.setattr("mlserver_timm.images.decoders.WATCH_INTERVAL", 0.02)
    monkeypatch.setattr("mlserver_timm.images.decoders.SLOW_SECONDS", 0.2)
    back = threading.Event()

    class Hanging(WorkTransform):
        def __call__(self, image: Work, helpers: IdleThreads) -> np.ndarray:
            if hangs == "pixels":
                back.wait(20)
            return super().__call__(image, helpers)

    class HangingSource(OpenWork):
        def open(self) -> OpenWork:  # type: ignore[override]
            if hangs == "header":
                back.wait(20)
            return super().open()

    async def scenario() -> None:
        limits = DecoderLimits(threads=1, memory=LIMIT, timeout=0.2)
        decoders = Decoders(Hanging(), limits, lambda _: None)  # type: ignore[arg-type]
        watch = asyncio.create_task(decoders.until_beyond_help())
        task = asyncio.create_task(decoders.decode(HangingSource(1, Ledger()), 1))
        await asyncio.sleep(0.1)
        assert not decoders.is_stuck()
        await asyncio.wait_for(watch, 10)
        assert decoders.is_stuck()
        back.set()
        await task
        assert not decoders.is_stuck()
        decoders.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bombs.lossless_webp(8000, 8000), id="webp"),
        pytest.param(bombs.png(1, 64_000_000), id="png"),
        pytest.param(bombs.progressive_jpeg(16000, 4000, 3), id="jpeg"),
    ],
)
def test_real_ones_that_never_fit(data: bytes) -> None:
    limits = DecoderLimits(threads=1, memory=128 * MEGABYTE, timeout=30)

    async def scenario() -> None:
        decoders = Decoders(TRANSFORM, limits, lambda _: None)
        with pytest.raises(InvalidImage, match="MiB"):
            await decoders.decode(EncodedImage(data, 64_000_000), 1)
        pixels = await decoders.decode(EncodedImage(image_file("PNG"), 64_000_000), 1)
        assert pixels.shape == (64, 64, 3)
        decoders.close()

    asyncio.run(scenario())
