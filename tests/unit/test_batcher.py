"""The batcher with a fake engine: each request gets its own answer, whatever others do."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mlserver_timm.errors import EngineFailed
from mlserver_timm.inference.batcher import Batcher
from tests.support.clients import assert_sentence
from tests.support.fake_engine import PATIENCE, POISON, Doubling, batcher, submit, turns

pytestmark = pytest.mark.timeout(PATIENCE)

requests = st.fixed_dictionaries(
    {
        "images": st.integers(1, 6),
        "poisoned": st.sampled_from([False] * 6 + [True]),
        "after": st.integers(0, 3),  # turns of the event loop since the request before
        "cancelled": st.sampled_from([None, None, None, 0, 1, 2, 5]),  # turns until then
    }
)


@pytest.mark.timeout(300)
@given(
    schedule=st.lists(requests, min_size=1, max_size=12),
    size=st.integers(1, 5),
    patience=st.sampled_from([0.0, 0.0, 0.002]),
    naps=st.lists(st.sampled_from([0.0, 0.0005, 0.002]), min_size=1, max_size=3),
    infer_requests=st.sampled_from([1, 1, 2, 3]),
)
async def test_any_schedule(
    schedule: list[dict[str, Any]],
    size: int,
    patience: float,
    naps: list[float],
    infer_requests: int,
) -> None:
    """No image is lost, computed twice, answered to another request or left waiting; failures and
    cancellations stay within their request or batch."""
    engine = Doubling(naps)
    numbers = iter(range(1, POISON))
    sent = [[next(numbers) for _ in range(request["images"])] for request in schedule]
    for request, values in zip(schedule, sent, strict=True):
        if request["poisoned"]:
            values[-1] += POISON

    async def one(queue: Batcher, request: dict[str, Any], values: list[int]) -> Any:
        task = asyncio.create_task(submit(queue, values))
        if request["cancelled"] is not None:
            await turns(1 + request["cancelled"])
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    tasks = []
    async with batcher(engine, size, patience, queue=200, infer_requests=infer_requests) as queue:
        for request, values in zip(schedule, sent, strict=True):
            await turns(request["after"])
            tasks.append(asyncio.create_task(one(queue, request, values)))
        answers = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert all(1 <= len(batch) <= size for batch in engine.batches)
    assert len(engine.computed) == len(set(engine.computed)), "computed twice"
    order = sum(sent, [])
    if infer_requests == 1:
        assert engine.computed == [value for value in order if value in engine.computed], (
            "reordered"
        )
    else:
        assert all(batch == sorted(batch, key=order.index) for batch in engine.batches)
    poisoned = {v for batch in engine.batches if max(batch) >= POISON for v in batch}
    for request, values, answer in zip(schedule, sent, answers, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert request["cancelled"] is not None
            continue
        assert len(answer) == len(values)
        for value, result in zip(values, answer, strict=True):
            assert value in engine.computed, "lost"
            if value in poisoned:
                assert isinstance(result, EngineFailed)
            else:
                assert result == 2 * value


async def test_queued_images_share_a_batch() -> None:
    """With max_batch_time 0 no image waits, and those that queued meanwhile share a batch."""
    engine = Doubling()
    async with batcher(engine) as queue:
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [1]))]
        await engine.taken()
        tasks += [asyncio.create_task(submit(queue, [value])) for value in range(2, 8)]
        await turns(3)
        engine.free.set()
        assert sum(await asyncio.gather(*tasks), []) == [2 * value for value in range(1, 8)]
    assert engine.batches == [[1], [2, 3, 4, 5], [6, 7]]


async def test_lone_request_does_not_wait() -> None:
    """No timer is set for it."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it waits")

    engine = Doubling()
    async with batcher(engine) as queue:
        asyncio.get_running_loop().call_later = never  # type: ignore[method-assign,assignment]
        asyncio.get_running_loop().call_at = never  # type: ignore[method-assign,assignment]
        assert await submit(queue, [7]) == [14]
    assert engine.batches == [[7]]


async def test_first_image_waits_for_others() -> None:
    """Only a full batch ends an endless `max_batch_time`."""
    engine = Doubling()
    async with batcher(engine, patience=3600) as queue:
        first = [asyncio.create_task(submit(queue, [value])) for value in (1, 2, 3)]
        done, _ = await asyncio.wait(first, timeout=0.1)
        assert not done and not engine.batches
        assert await submit(queue, [4]) == [8]
        assert sum(await asyncio.gather(*first), []) == [2, 4, 6]
    assert engine.batches == [[1, 2, 3, 4]]


async def test_first_image_waits_for_max_batch_time() -> None:
    """It waits for `max_batch_time`, even if the batch has room and images keep coming."""
    engine = Doubling()
    async with batcher(engine, size=1000, patience=0.1, queue=10_000) as queue:
        started = time.monotonic()
        first = asyncio.create_task(submit(queue, [1]))
        others = []
        while not first.done():
            others.append(asyncio.create_task(submit(queue, [2])))
            await asyncio.sleep(0.005)
        assert time.monotonic() - started >= 0.1
        assert await first == [2]
        await asyncio.gather(*others)
    assert 1 < len(engine.batches[0]) < 1000


async def test_engine_failure_stays_in_its_batch() -> None:
    engine = Doubling()
    async with batcher(engine, size=2) as queue:
        answers = await submit(queue, [1, 2, POISON, 3, 4])
        assert answers[:2] == [2, 4] and answers[4] == 8
        assert all(isinstance(answer, EngineFailed) for answer in answers[2:4])
        assert answers[2].status_code == 500
        assert_sentence(str(answers[2]))
        assert await submit(queue, [5]) == [10]


@pytest.mark.parametrize("wrong", [0, 1, 3])
async def test_engine_with_another_count_of_answers(wrong: int) -> None:
    """All images of the batch fail, since it is unclear whose answers these are."""
    async with batcher(lambda pixels: np.zeros((wrong, 1))) as queue:
        for answer in await submit(queue, [1, 2]):
            assert isinstance(answer, EngineFailed)


async def test_cancelled_before_its_batch() -> None:
    """It is not computed, and the next image takes its place."""
    engine = Doubling()
    async with batcher(engine, size=2) as queue:
        engine.free.clear()
        tasks = [asyncio.create_task(submit(queue, [value])) for value in range(1, 6)]
        await engine.taken()
        tasks[2].cancel()
        await turns(3)
        engine.free.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(2), asyncio.CancelledError)
        assert answers == [[2], [4], [8], [10]]
    assert engine.batches == [[1, 2], [4, 5]]
