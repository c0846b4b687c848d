"""The cost of a request to others: memory, gaps in liveness, slow or wrong answers.

A request delays others when the server computes in the meantime. Waits count as the CPU time of the
server, so that a pause of a shared machine, or of the test's own process, fails no test.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests

from client.local import LocalServer
from tests.support.client_threads import ClientThreads
from tests.support.clients import COFFEE, classify, resident
from tests.support.processes import cpu_seconds

MEGABYTE = 2**20
INTERVAL = 0.02
"""Seconds between two observations."""


@dataclass
class Watch:
    """Observations of a server during a block."""

    before: int
    peak: int = 0
    gaps: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes of memory at the peak beyond those before."""
        return self.peak - self.before

    @property
    def gap(self) -> float:
        """Largest CPU time in seconds that the server used before liveness was answered."""
        return max(self.gaps)

    @property
    def slowest(self) -> float:
        """Largest CPU time in seconds that the server used before another client's answer."""
        return max(self.answers)

    def assert_harmless(self, megabytes: float = 200, gap: float = 1, slowest: float = 1) -> None:
        """Assert that other clients did not notice."""
        assert self.growth < megabytes * MEGABYTE, f"{self.growth / MEGABYTE:.0f} MB"
        assert self.gap < gap, f"liveness waited for {self.gap:.2f} s of CPU time"
        assert self.answers and not self.failures, self.failures[:3]
        assert self.slowest < slowest, f"an answer waited for {self.slowest:.2f} s"


class Stopwatch:
    """A clock that runs while both the wall clock and the process's CPU time advance."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._started = time.monotonic()
        self._cpu_before = cpu_seconds(pid)

    def seconds(self) -> float:
        """Return the seconds since the start, or the CPU time in them where this is less."""
        cpu = cpu_seconds(self._pid) - self._cpu_before
        return min(time.monotonic() - self._started, cpu)


@contextlib.contextmanager
def resource_monitor(server: LocalServer) -> Iterator[Watch]:
    """Observe liveness, memory and the answers to another client during a block."""
    watch = Watch(resident(server))
    image = COFFEE.read_bytes()
    expected = classify(server, image).json()

    def observe() -> None:
        with requests.Session() as session:
            while not clients.ended.is_set():
                stopwatch = Stopwatch(server.process.pid)
                assert session.get(f"{server.url}/v2/health/live", timeout=60).ok
                watch.gaps.append(stopwatch.seconds())
                watch.peak = max(watch.peak, resident(server))
                time.sleep(INTERVAL)

    def classify_repeatedly() -> None:
        while not clients.ended.is_set():
            stopwatch = Stopwatch(server.process.pid)
            response = classify(server, image)
            watch.answers.append(stopwatch.seconds())
            if response.status_code != 200 or response.json() != expected:
                watch.failures.append(response.text[:200])
            time.sleep(INTERVAL)

    clients = ClientThreads([observe, classify_repeatedly])
    with clients:
        yield watch
