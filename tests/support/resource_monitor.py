"""What a request costs everybody else: memory, gaps of liveness, other clients' answers."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests

from client.local import LocalServer
from tests.support.clients import COFFEE, classify, resident

MEGABYTE = 2**20
BEAT = 0.02


@dataclass
class Watch:
    """What was seen while something was done to a server."""

    before: int
    peak: int = 0
    gaps: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes of memory at the peak, beyond those before."""
        return self.peak - self.before

    @property
    def gap(self) -> float:
        """Seconds that liveness took to answer, at most."""
        return max(self.gaps)

    @property
    def slowest(self) -> float:
        """Seconds that an answer to the good client took, at most."""
        return max(self.answers)


@contextlib.contextmanager
def watching(server: LocalServer) -> Iterator[Watch]:
    """Looks at liveness and memory all the time, while a good client asks one thing after the
    other; a good client that is refused, or answered wrongly, is a failure."""
    watch = Watch(resident(server))
    picture = COFFEE.read_bytes()
    expected = classify(server, picture).json()
    done = threading.Event()

    def look() -> None:
        with requests.Session() as session:
            while not done.is_set():
                started = time.monotonic()
                assert session.get(f"{server.url}/v2/health/live", timeout=60).ok
                watch.gaps.append(time.monotonic() - started)
                watch.peak = max(watch.peak, resident(server))
                time.sleep(BEAT)

    def ask() -> None:
        while not done.is_set():
            started = time.monotonic()
            answer = classify(server, picture)
            watch.answers.append(time.monotonic() - started)
            if answer.status_code != 200 or answer.json() != expected:
                watch.failures.append(answer.text[:200])
            time.sleep(BEAT)

    threads = [threading.Thread(target=what) for what in (look, ask)]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        done.set()
        for thread in threads:
            thread.join()
