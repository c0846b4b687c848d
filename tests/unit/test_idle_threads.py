"""All parts are done once, by whoever is idle, and nobody waits for the busy."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlserver_timm.images.idle_threads import IdleThreads

PARTS = range(50)


def test_each_part_is_done_once_and_by_several() -> None:
    done: list[int] = []
    met = threading.Barrier(3, timeout=20)

    def work(part: int) -> None:
        if part < 3:
            met.wait()  # passes where three threads are at it at once
        done.append(part)

    with ThreadPoolExecutor(2) as pool:
        IdleThreads(pool, 2).share(work, PARTS)
    assert sorted(done) == list(PARTS)


def test_no_busy_thread_is_waited_for() -> None:
    free = threading.Event()
    caller = threading.get_ident()
    by: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(free.wait, 60)
        IdleThreads(pool, 1).share(lambda part: by.append(threading.get_ident()), PARTS)
        assert by == [caller] * len(PARTS) and not busy.done()
        free.set()


def test_what_is_done_is_let_go_of() -> None:
    """An image that has been resized, though a helper that was called off waits in the queue."""

    class Image:
        def resize(self, part: int) -> None:
            pass

    free, image = threading.Event(), Image()
    gone = weakref.ref(image)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait, 60)
        IdleThreads(pool, 1).share(image.resize, PARTS)
        del image
        assert gone() is None
        free.set()


def test_threads_of_the_same_pool_do_not_wait_for_each_other() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        helpers = IdleThreads(pool, 1)
        both = [pool.submit(helpers.share, done.append, PARTS) for _ in range(2)]
        for one in both:
            one.result(20)
    assert len(done) == 2 * len(PARTS)


def test_a_closed_pool_helps_nobody() -> None:
    done: list[int] = []
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    IdleThreads(pool, 1).share(done.append, PARTS)
    assert done == list(PARTS)


@pytest.mark.parametrize("helper_fails", [False, True])
def test_an_error_is_raised_once_no_thread_is_at_it(helper_fails: bool) -> None:
    caller, met = threading.get_ident(), threading.Barrier(2, timeout=20)
    at_work: set[int] = set()

    def work(part: int) -> None:
        at_work.add(part)
        if part < 2:
            met.wait()
        if (threading.get_ident() == caller) != helper_fails:
            raise MemoryError(part)
        at_work.remove(part)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(MemoryError):
            IdleThreads(pool, 1).share(work, PARTS)
        assert len(at_work) == 1 and pool.submit(int).result(20) == 0
