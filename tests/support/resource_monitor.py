"""The cost of a request to others: memory, gaps in liveness, slow or wrong answers."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests

from client.local import LocalServer
from tests.support.clients import COFFEE, classify, resident

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
        """Longest time in seconds that liveness took to answer."""
        return max(self.gaps)

    @property
    def slowest(self) -> float:
        """Longest time in seconds that an answer to another client took."""
        return max(self.answers)

    def assert_harmless(self, megabytes: float = 200, gap: float = 1, slowest: float = 1) -> None:
        """Assert that other clients did not notice."""
        assert self.growth < megabytes * MEGABYTE, f"{self.growth / MEGABYTE:.0f} MB"
        assert self.gap < gap, f"liveness took {self.gap:.2f} s"
        assert self.answers and not self.failures, self.failures[:3]
        assert self.slowest < slowest, f"another client's answer took {self.slowest:.2f} s"


@contextlib.contextmanager
def resource_monitor(server: LocalServer) -> Iterator[Watch]:
    """Observe liveness, memory and the answers to another client during a block."""
    watch = Watch(resident(server))
    image = COFFEE.read_bytes()
    expected = classify(server, image).json()
    done = threading.Event()

    def observe() -> None:
        with requests.Session() as session:
            while not done.is_set():
                started = time.monotonic()
                assert session.get(f"{server.url}/v2/health/live", timeout=60).ok
                watch.gaps.append(time.monotonic() - started)
                watch.peak = max(watch.peak, resident(server))
                time.sleep(INTERVAL)

    def classify_repeatedly() -> None:
        while not done.is_set():
            started = time.monotonic()
            response = classify(server, image)
            watch.answers.append(time.monotonic() - started)
            if response.status_code != 200 or response.json() != expected:
                watch.failures.append(response.text[:200])
            time.sleep(INTERVAL)

    threads = [threading.Thread(target=work) for work in (observe, classify_repeatedly)]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        done.set()
        for thread in threads:
            thread.join()
