"""A request's timeline: each moment belongs to one step, and the steps add up."""

import asyncio
import time
from typing import Any

import pytest
from profile_request import means
from timeline import OUTSIDE, ROUTING, STEPS, UVICORN, Timeline, find, middleware_timed


@pytest.mark.parametrize("target", STEPS)
def test_every_step_begins_somewhere(target: str) -> None:
    _, _, function = find(target)
    assert callable(function)


def test_inner_steps_are_not_counted_twice() -> None:
    timeline = Timeline()

    def inner() -> None:
        time.sleep(0.03)

    async def outer() -> None:
        time.sleep(0.01)
        timeline.timed(inner, "inner")()
        time.sleep(0.01)

    started = time.perf_counter()
    asyncio.run(timeline.timed(outer, "outer")())
    timeline.finish()
    passed = 1000 * (time.perf_counter() - started)
    (steps,) = timeline.requests
    assert steps["inner"] >= 30 and 20 <= steps["outer"] < steps["inner"] + passed - 30
    assert sum(steps.values()) == pytest.approx(passed, abs=5)


def test_a_step_ends_with_its_exception() -> None:
    timeline = Timeline()

    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        timeline.timed(fails, "failing")()
    assert timeline.step == OUTSIDE


class Layer:
    def __init__(self, app: Any, seen: list[str], timeline: Timeline) -> None:
        self._app, self._seen, self._timeline = app, seen, timeline

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._seen.append(self._timeline.step)
        await self._app(scope, receive, send)
        self._seen.append(self._timeline.step)


class Outer(Layer):
    pass


class Inner(Layer):
    pass


def test_each_middleware_is_a_step() -> None:
    timeline, seen = Timeline(), []

    async def router(scope: Any, receive: Any, send: Any) -> None:
        seen.append(timeline.step)
        await send({})

    async def send(message: Any) -> None:
        seen.append(timeline.step)

    async def receive() -> Any:
        return {}

    stack = Outer(Inner(router, seen, timeline), seen, timeline)
    timeline.enter(UVICORN)
    asyncio.run(middleware_timed(stack, timeline)({}, receive, send))
    layers = ["middleware: Outer", "middleware: Inner"]
    assert seen == [*layers, ROUTING, UVICORN, *reversed(layers)]
    assert timeline.step == UVICORN


def test_means_are_of_the_middle_and_add_up() -> None:
    requests = [{"a": 1.0, "b": 2.0}] * 18 + [{"a": 500.0}, {"a": 0.0}]
    assert means(requests) == {"b": 2.0, "a": 1.0}
