"""Admission, close, division of work and measurements of the batcher."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mlserver.errors import MLServerError

from mlserver_timm.errors import EngineFailed, ModelClosing, QueueFull
from tests.support.fake_engine import (
    PATIENCE,
    Doubling,
    batcher,
    submit,
    submit_one,
    turns,
)

pytestmark = pytest.mark.timeout(PATIENCE)


async def test_infer_requests_share_queued_images() -> None:
    """They divide it evenly, in order of arrival, and hold at most one batch together."""
    engine, undivided = Doubling(), Doubling()
    async with batcher(
        engine, size=5, infer_requests=2, streams=2, images_per_request=3, latency=undivided
    ) as queue:
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(4)]
        await engine.taken()
        await engine.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in range(4, 12)]
        await turns(3)
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == list(range(0, 24, 2))
    assert sorted(engine.batches[:2]) == [[0, 1], [2, 3]]
    assert sorted(engine.computed + undivided.computed) == list(range(12))
    assert max(len(batch) for batch in engine.batches) == 3


@pytest.mark.parametrize("images", [1, 3])
async def test_a_batch_for_which_no_thread_can_be_started_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with batcher(Doubling(), infer_requests=2, streams=2) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", fail)
            answers = await submit(queue, [1] * images)
        assert [type(answer) for answer in answers] == [EngineFailed] * images
        assert await submit(queue, [1] * images) == [2] * images


async def test_a_lone_image_is_computed_on_all_threads() -> None:
    """Nothing else runs meanwhile; later images are divided again."""
    engine, undivided = Doubling(), Doubling()
    async with batcher(engine, infer_requests=2, streams=2, latency=undivided) as queue:
        undivided.free.clear()
        tasks = [asyncio.create_task(submit(queue, [1]))]
        await undivided.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in (2, 3)]
        await turns(5)
        assert not engine.batches
        undivided.free.set()
        assert await asyncio.gather(*tasks) == [[2], [4], [6]]
    assert undivided.batches == [[1]] and sorted(engine.batches) == [[2], [3]]


async def test_one_image_among_others_goes_to_a_stream() -> None:
    """It goes to a free infer request at once, even if there are more of these than streams."""
    engine, undivided = Doubling(), Doubling()
    async with batcher(
        engine, infer_requests=4, streams=2, images_per_request=1, latency=undivided
    ) as queue:
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [1, 2]))]
        await engine.taken()
        await engine.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in (3, 4, 5)]
        await engine.taken()
        await engine.taken()
        await turns(5)
        assert sorted(engine.batches) == [[1], [2], [3], [4]]
        engine.free.set()
        assert await asyncio.gather(*tasks) == [[2, 4], [6], [8], [10]]
    assert sorted(engine.computed + undivided.computed) == [1, 2, 3, 4, 5]


async def test_full_queue() -> None:
    async with batcher(Doubling(), queue=8) as queue:
        with queue.admit(5):
            with queue.admit(3), pytest.raises(QueueFull) as failure, queue.admit(1):
                pass
            assert failure.value.status_code == 503 and "8 images" in str(failure.value)
            with pytest.raises(QueueFull), queue.admit(4):
                pass
            with queue.admit(3):
                pass
        with queue.admit(8):
            pass


async def test_a_full_queue_says_when_to_come_back() -> None:
    """After the time in which the latest batches computed as many images."""
    async with batcher(Doubling(), queue=8) as queue:
        for latest, expected in (([], 1), ([(1.5, 1), (2.5, 3)], 8)):
            queue._latest.extend(latest)
            with queue.admit(8), pytest.raises(QueueFull) as failure:
                queue.check_room(1)
            assert failure.value.retry_after == expected


async def test_request_larger_than_the_queue() -> None:
    """Status 400 in place of 503, since a retry cannot succeed."""
    async with batcher(Doubling(), queue=8) as queue:
        with pytest.raises(MLServerError) as failure, queue.admit(9):
            pass
        assert failure.value.status_code == 400 and "at most 8" in str(failure.value)


async def test_place_is_free_after_an_error() -> None:
    async with batcher(Doubling(), queue=1) as queue:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), queue.admit(1):
                raise ZeroDivisionError
        assert await submit(queue, [1]) == [2]


async def test_close_answers_admitted_requests() -> None:
    engine = Doubling()
    async with batcher(engine, patience=0.01) as queue:
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(6)]
        await engine.taken()
        closing = asyncio.create_task(queue.close())
        await turns(3)
        with pytest.raises(ModelClosing) as failure, queue.admit(1):
            pass
        assert failure.value.status_code == 503
        assert not closing.done()
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == [0, 2, 4, 6, 8, 10]
        await closing


async def test_close_waits_for_decoding() -> None:
    """The image is admitted, and not yet in the queue."""
    async with batcher(Doubling()) as queue:
        with queue.admit(1):
            closing = asyncio.create_task(queue.close())
            await turns(5)
            assert not closing.done()
            assert await submit_one(queue, 3) == 6
        await closing


async def test_close_ends_its_threads() -> None:
    before = set(threading.enumerate())
    async with batcher(Doubling()) as queue:
        assert await submit(queue, [1]) == [2]
    deadline = time.monotonic() + PATIENCE
    while any(thread not in before for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_time_in_the_engine_is_of_the_stream() -> None:
    """The time that a batch waits for a stream within the engine counts as waiting."""
    seen: dict[str, list[float]] = {}
    stream = threading.Lock()

    def engine(pixels: np.ndarray) -> np.ndarray:
        with stream:
            time.sleep(0.02)
        return pixels

    def observe(name: str, value: float) -> None:
        seen.setdefault(name, []).append(value)

    async with batcher(engine, infer_requests=2, observe=observe) as queue:
        started = time.monotonic()
        await submit(queue, [1, 2])
        elapsed = time.monotonic() - started
    assert sum(seen["engine_seconds"]) <= elapsed
    assert seen["queue_seconds"][1] >= seen["engine_seconds"][0] >= 0.02
