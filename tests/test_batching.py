"""The queue, before a fake engine: to each request its own answer, whatever happens beside it."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlserver.errors import MLServerError

from batching import Batcher, Closed, EngineFailed, QueueFull

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


# --- Whatever comes ---------------------------------------------------------------------------

requests = st.fixed_dictionaries(
    {
        "images": st.integers(1, 6),
        "poisoned": st.sampled_from([False] * 6 + [True]),
        "after": st.integers(0, 3),  # turns of the event loop since the request before
        "given_up": st.sampled_from([None, None, None, 0, 1, 2, 5]),  # turns until it is
    }
)


@settings(max_examples=150, deadline=None)
@given(
    schedule=st.lists(requests, min_size=1, max_size=12),
    size=st.integers(1, 5),
    patience=st.sampled_from([0.0, 0.0, 0.002]),
    naps=st.lists(st.sampled_from([0.0, 0.0005, 0.002]), min_size=1, max_size=3),
    lanes=st.sampled_from([1, 1, 2, 3]),
)
def test_any_schedule(
    schedule: list[dict[str, Any]], size: int, patience: float, naps: list[float], lanes: int
) -> None:
    """No image is lost, doubled, given to another, or left waiting; failures and cancellations
    stay with those whom they concern."""
    engine = Engine(naps)
    numbers = iter(range(1, POISON))
    asked = [[next(numbers) for _ in range(request["images"])] for request in schedule]
    for request, values in zip(schedule, asked, strict=True):
        if request["poisoned"]:
            values[-1] += POISON

    async def one(queue: Batcher, request: dict[str, Any], values: list[int]) -> Any:
        task = asyncio.create_task(submit(queue, values))
        if request["given_up"] is not None:
            await turns(1 + request["given_up"])
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def scenario() -> list[Any]:
        queue = batcher(engine, size, patience, queue=200, lanes=lanes)
        tasks = []
        for request, values in zip(schedule, asked, strict=True):
            await turns(request["after"])
            tasks.append(asyncio.create_task(one(queue, request, values)))
        answers = await asyncio.gather(*tasks)
        await queue.close()
        return answers

    answers = run(scenario)
    assert all(1 <= len(batch) <= size for batch in engine.batches)
    assert len(engine.computed) == len(set(engine.computed)), "computed twice"
    order = sum(asked, [])
    if lanes == 1:
        assert engine.computed == [value for value in order if value in engine.computed], (
            "reordered"
        )
    else:
        assert all(batch == sorted(batch, key=order.index) for batch in engine.batches)
    poisoned = {v for batch in engine.batches if max(batch) >= POISON for v in batch}
    for request, values, answer in zip(schedule, asked, answers, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert request["given_up"] is not None
            continue
        assert len(answer) == len(values)
        for value, result in zip(values, answer, strict=True):
            assert value in engine.computed, "lost"
            if value in poisoned:
                assert isinstance(result, EngineFailed)
            else:
                assert result == 2 * value


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_threads_of_requests() -> None:
    """Many at once for a while, as a server has them."""
    engine = Engine([0.0, 0.001])

    async def client(queue: Batcher, number: int) -> None:
        for i in range(20):
            values = [number * 100 + i * 4 + j for j in range(1 + (number + i) % 4)]
            assert await submit(queue, values) == [2 * value for value in values]

    async def scenario() -> None:
        queue = batcher(engine)
        await asyncio.gather(*[client(queue, number) for number in range(9)])
        await queue.close()

    run(scenario)
    assert max(map(len, engine.batches)) <= 4


# --- Sizes and times --------------------------------------------------------------------------


def test_what_waits_is_one_batch() -> None:
    """With max_batch_time 0 nobody waits for company, and whoever came meanwhile goes together."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine)
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [1]))]
        await engine.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in range(2, 8)]
        await turns(3)
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == [2 * value for value in range(1, 8)]
        await queue.close()

    run(scenario)
    assert engine.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_lone_request_does_not_wait() -> None:
    """No timer is set for it: with one it would have to wait for ever here."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine)
        asyncio.get_running_loop().call_later = never  # type: ignore[method-assign,assignment]
        asyncio.get_running_loop().call_at = never  # type: ignore[method-assign,assignment]
        assert await submit(queue, [7]) == [14]
        await queue.close()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it waits")

    asyncio.run(scenario())
    assert engine.batches == [[7]]


def test_first_image_waits_for_others() -> None:
    """For so long that only a full batch can end it."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, patience=3600)
        first = [asyncio.create_task(submit(queue, [value])) for value in (1, 2, 3)]
        done, _ = await asyncio.wait(first, timeout=0.1)
        assert not done and not engine.batches
        assert await submit(queue, [4]) == [8]
        assert sum(await asyncio.gather(*first), []) == [2, 4, 6]
        await queue.close()

    run(scenario)
    assert engine.batches == [[1, 2, 3, 4]]


def test_first_image_waits_no_longer() -> None:
    """Though a batch could hold more, and others keep coming."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, size=1000, patience=0.1, queue=10_000)
        started = time.monotonic()
        first = asyncio.create_task(submit(queue, [1]))
        others = []
        while not first.done():
            others.append(asyncio.create_task(submit(queue, [2])))
            await asyncio.sleep(0.005)
        assert time.monotonic() - started >= 0.1
        assert await first == [2]
        await asyncio.gather(*others)
        await queue.close()

    run(scenario)
    assert 1 < len(engine.batches[0]) < 1000


@pytest.mark.parametrize("images", [5, 8, 11])
def test_large_request_is_split(images: int) -> None:
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine)
        values = list(range(images))
        assert await submit(queue, values) == [2 * value for value in values]
        await queue.close()

    run(scenario)
    assert engine.computed == list(range(images))
    assert max(map(len, engine.batches)) == 4


def test_large_request_lets_others_through() -> None:
    """One who comes after it waits for it, and no longer."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine)
        large = asyncio.create_task(submit(queue, list(range(20))))
        await engine.taken()
        assert await submit(queue, [99]) == [198]
        assert await large == list(range(0, 40, 2))
        await queue.close()

    run(scenario)


# --- Lanes and streams ------------------------------------------------------------------------


def test_lanes_share_what_waits() -> None:
    """Evenly, in the order of arrival, and one that is free does not wait for the other; together
    they hold no more than a batch."""
    engine, undivided = Engine(), Engine()

    async def scenario() -> None:
        queue = batcher(engine, size=5, lanes=2, streams=2, share=3, alone=undivided)
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(4)]
        await engine.taken()
        await engine.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in range(4, 12)]
        await turns(3)
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == list(range(0, 24, 2))
        await queue.close()

    run(scenario)
    assert sorted(engine.batches[:2]) == [[0, 1], [2, 3]]
    assert sorted(engine.computed + undivided.computed) == list(range(12))
    assert max(len(batch) for batch in engine.batches) == 3


def test_a_lone_image_has_the_engine_for_itself() -> None:
    """Nothing runs beside it; what comes meanwhile is divided again."""
    engine, undivided = Engine(), Engine()

    async def scenario() -> None:
        queue = batcher(engine, lanes=2, streams=2, alone=undivided)
        undivided.free.clear()
        tasks = [asyncio.create_task(submit(queue, [1]))]
        await undivided.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in (2, 3)]
        await turns(5)
        assert not engine.batches
        undivided.free.set()
        assert await asyncio.gather(*tasks) == [[2], [4], [6]]
        await queue.close()

    run(scenario)
    assert undivided.batches == [[1]] and sorted(engine.batches) == [[2], [3]]


def test_one_image_beside_others_is_not_alone() -> None:
    """It goes to a free lane at once, more lanes than streams or not."""
    engine, undivided = Engine(), Engine()

    async def scenario() -> None:
        queue = batcher(engine, lanes=4, streams=2, share=1, alone=undivided)
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
        await queue.close()

    run(scenario)
    assert sorted(engine.computed + undivided.computed) == [1, 2, 3, 4, 5]


def test_failure_in_one_lane() -> None:
    """The other goes on."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, size=1, lanes=2, streams=2)
        answers = await submit(queue, [1, POISON, 2, 3, POISON + 1, 4])
        assert [a for a in answers if not isinstance(a, EngineFailed)] == [2, 4, 6, 8]
        assert isinstance(answers[1], EngineFailed) and isinstance(answers[4], EngineFailed)
        assert await submit(queue, [5]) == [10]
        await queue.close()

    run(scenario)


# --- Failures and cancellations ---------------------------------------------------------------


def test_engine_failure_stays_in_its_batch() -> None:
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, size=2)
        answers = await submit(queue, [1, 2, POISON, 3, 4])
        assert answers[:2] == [2, 4] and answers[4] == 8
        assert all(isinstance(answer, EngineFailed) for answer in answers[2:4])
        assert await submit(queue, [5]) == [10]
        await queue.close()

    run(scenario)


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_engine_with_another_count_of_answers(wrong: int) -> None:
    """Nobody gets anybody else's."""

    async def scenario() -> None:
        queue = batcher(lambda pixels: np.zeros((wrong, 1)))
        for answer in await submit(queue, [1, 2]):
            assert isinstance(answer, EngineFailed)
        await queue.close()

    run(scenario)


def test_given_up_before_its_batch() -> None:
    """It is not computed, and its place goes to the next."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, size=2)
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(1, 6)]
        await engine.taken()
        tasks[2].cancel()
        await turns(3)
        engine.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(2), asyncio.CancelledError)
        assert answers == [[2], [4], [8], [10]]
        await queue.close()

    run(scenario)
    assert engine.batches == [[1, 2], [4, 5]]


def test_given_up_in_its_batch() -> None:
    """Its neighbours are answered, as if it were still there."""
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine)
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in (1, 2, 3)]
        await engine.taken()
        tasks[1].cancel()
        await turns(3)
        engine.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert (answers[0], answers[2]) == ([2], [6])
        assert await submit(queue, [4]) == [8]
        await queue.close()

    run(scenario)


# --- Taking in and closing --------------------------------------------------------------------


def test_only_so_many_are_taken_in() -> None:
    async def scenario() -> None:
        queue = batcher(Engine(), queue=8)
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
        await queue.close()

    run(scenario)


def test_more_than_could_ever_be_taken_in() -> None:
    """Told apart from a queue that is full now: to try again is of no use."""

    async def scenario() -> None:
        queue = batcher(Engine(), queue=8)
        with pytest.raises(MLServerError) as failure, queue.admit(9):
            pass
        assert failure.value.status_code == 400 and "at most 8" in str(failure.value)
        await queue.close()

    run(scenario)


def test_place_is_free_after_an_error() -> None:
    async def scenario() -> None:
        queue = batcher(Engine(), queue=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), queue.admit(1):
                raise ZeroDivisionError
        assert await submit(queue, [1]) == [2]
        await queue.close()

    run(scenario)


def test_close_answers_what_was_taken_in() -> None:
    engine = Engine()

    async def scenario() -> None:
        queue = batcher(engine, patience=0.01)
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(6)]
        await engine.taken()
        closing = asyncio.create_task(queue.close())
        await turns(3)
        with pytest.raises(Closed) as failure, queue.admit(1):
            pass
        assert failure.value.status_code == 503
        assert not closing.done()
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == [0, 2, 4, 6, 8, 10]
        await closing

    run(scenario)


def test_close_waits_for_what_is_still_decoded() -> None:
    """Taken in, and not yet in the queue."""

    async def scenario() -> None:
        queue = batcher(Engine())
        with queue.admit(1):
            closing = asyncio.create_task(queue.close())
            await turns(5)
            assert not closing.done()
            assert (await queue.submit(image(3)))[0] == 6
        await closing

    run(scenario)


def test_close_ends_its_threads() -> None:
    async def scenario() -> None:
        queue = batcher(Engine())
        assert await submit(queue, [1]) == [2]
        await queue.close()

    run(scenario)
    deadline = time.monotonic() + PATIENCE
    while any(thread.name.startswith("engine") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_measurements() -> None:
    """As many images in batches as were answered, each with its waiting time."""
    seen: list[tuple[str, float]] = []

    async def scenario() -> None:
        queue = Batcher(Engine(), 4, 0, 64, lambda name, value: seen.append((name, value)))
        await submit(queue, list(range(10)))
        await queue.close()

    run(scenario)
    named = {name: [v for n, v in seen if n == name] for name, _ in seen}
    assert sum(named["batch_size_images"]) == 10
    assert len(named["queue_seconds"]) == 10
    assert len(named["engine_seconds"]) == len(named["batch_size_images"])
    assert max(named["queue_length_images"]) <= 10
    assert all(value >= 0 for _, value in seen)


def test_time_in_the_engine_is_of_the_stream() -> None:
    """A batch that waits for a stream inside of the engine counts as waiting, not as computed."""
    seen: dict[str, list[float]] = {}
    stream = threading.Lock()

    def engine(pixels: np.ndarray) -> np.ndarray:
        with stream:
            time.sleep(0.02)
        return pixels

    async def scenario() -> float:
        queue = batcher(
            engine, lanes=2, observe=lambda name, value: seen.setdefault(name, []).append(value)
        )
        started = time.monotonic()
        await submit(queue, [1, 2])
        elapsed = time.monotonic() - started
        await queue.close()
        return elapsed

    elapsed = run(scenario)
    assert sum(seen["engine_seconds"]) <= elapsed
    assert seen["queue_seconds"][1] >= seen["engine_seconds"][0] >= 0.02


def test_times_of_a_batch_that_overtakes() -> None:
    """Threads may bring a later batch to the engine first; no time is then taken from nowhere."""
    seen: dict[str, list[float]] = {}
    later = threading.Event()

    def engine(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0] == 1:
            assert later.wait(PATIENCE)
        return pixels

    async def scenario() -> float:
        queue = batcher(
            engine, lanes=2, observe=lambda name, value: seen.setdefault(name, []).append(value)
        )
        started = time.monotonic()
        first, second = (asyncio.create_task(submit(queue, [value])) for value in (1, 2))
        assert await second == [2]
        later.set()
        assert await first == [1]
        elapsed = time.monotonic() - started
        await queue.close()
        return elapsed

    elapsed = run(scenario)
    times = seen["engine_seconds"] + seen["queue_seconds"]
    assert len(times) == 4 and all(0 <= value <= elapsed for value in times)
    assert sum(seen["engine_seconds"]) <= elapsed
