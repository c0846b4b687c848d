"""Parts of one image's work, shared with threads that have nothing else to do."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class IdleThreads:
    """Up to `count` threads of a pool, to help one that is of the same pool or of none.

    Nobody waits for a thread that is busy with something else: what it has not begun, the caller
    does.
    """

    pool: Executor
    count: int

    def share(self, work: Callable[[Part], None], parts: Iterable[Part]) -> None:
        """Does the work for each part, and returns when all is done; raises what the work raises,
        and then begins no further part."""
        # A helper that is called off stays in the pool's queue, so it may know of nothing else.
        left: deque[Callable[[], None]] = deque(functools.partial(work, part) for part in parts)
        helpers: list[Future[None]] = []
        with contextlib.suppress(RuntimeError):  # the pool is closed, then nobody helps
            for _ in range(min(self.count, len(left) - 1)):
                helpers.append(self.pool.submit(_work_off, left))
        try:
            _work_off(left)
        finally:
            left.clear()
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()


def _work_off(left: "deque[Callable[[], None]]") -> None:
    while True:
        try:
            work = left.popleft()
        except IndexError:
            return
        work()
        del work
