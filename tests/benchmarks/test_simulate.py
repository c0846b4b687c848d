"""The simulation agrees with what can be worked out by hand."""

import pytest
from simulate import Times, simulate, times_of

TIMES = Times(loop=2, decode_locked=0.5, decode=2.5, engine=10, parallel=1.0, client=0)


def test_one_core_does_one_thing_at_a_time() -> None:
    assert simulate(TIMES, 1).rate == pytest.approx(1000 / 15, rel=0.01)
    assert simulate(TIMES, 1, clients=1).p50_ms == pytest.approx(15)


def test_a_lone_request_has_all_threads_of_the_engine() -> None:
    assert simulate(TIMES, 4, clients=1).p50_ms == pytest.approx(5 + 10 / 4)


def test_two_cores_do_twice_as_much_while_nothing_is_locked() -> None:
    assert simulate(TIMES, 2, clients=16).rate == pytest.approx(2000 / 15, rel=0.05)


def test_the_lock_bounds_one_process() -> None:
    bound = 1000 / (TIMES.loop + TIMES.decode_locked)
    assert simulate(TIMES, 64, clients=256).rate == pytest.approx(bound, rel=0.05)
    assert simulate(TIMES, 64, 8, clients=256).rate > 5 * bound


def test_more_cores_never_do_less() -> None:
    rates = [simulate(TIMES, cores, clients=64).rate for cores in (1, 2, 4, 8)]
    assert rates == sorted(rates)


def test_times_come_from_the_profile() -> None:
    profile = {
        "machine": {"cores": 2},
        "steps": {
            "raw": {
                "engine": 5.5,
                "resize": 2.0,
                "JPEG: decode": 0.5,
                "crop and copy": 0.2,
                "uvicorn": 1.0,
                "hand-over between threads, and the queue": 3.0,
            }
        },
        "plain": {"raw, 8": {"core_ms": 15.0}},
        "engine": {"rate": 200.0},
    }
    times = times_of(profile)
    assert (times.engine, times.decode, times.decode_locked) == (10, 2.5, 0.2)
    assert times.loop == pytest.approx(15 - 10 - 2.5 - 0.2)
    assert times.parallel == pytest.approx(0.9)
