"""Memory that images being decoded may take in one process."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass

from mlserver_timm.errors import InvalidImage
from mlserver_timm.memory import return_to_system

MEGABYTE = 2**20

LARGE = 32 * MEGABYTE
"""Bytes from which memory is given back to the system afterwards. glibc keeps up to 90 MB of what
was freed, in its own lists; giving it back takes about a millisecond."""

SMALL_SHARE = 16
"""One of so many parts of the limit may be taken by those who come later, while a larger image
waits; else everybody would wait with it."""


@dataclass(eq=False)
class _Waiting:
    size: int
    limit: int
    loop: asyncio.AbstractEventLoop
    granted: "asyncio.Future[None]"


class DecodeBudget:
    """Grants bytes up to a limit, from any thread; those who wait get theirs in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: deque[_Waiting] = deque()

    def take(self, size: int, limit: int) -> bool:
        """Takes so many bytes if they are there now; raises InvalidImage if they never are."""
        check_memory(size, limit)
        with self._lock:
            granted = self._taken + size <= limit and (
                not self._waiting or size * SMALL_SHARE <= limit
            )
            if granted:
                self._taken += size
            return granted

    async def wait(self, size: int, limit: int) -> None:
        """Returns when so many bytes are taken."""
        loop = asyncio.get_running_loop()
        one = _Waiting(size, limit, loop, loop.create_future())
        with self._lock:
            self._waiting.append(one)
        self._grant()
        try:
            await one.granted
        except asyncio.CancelledError:
            self._withdraw(one)
            if not one.granted.cancelled():
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """What `take` or `wait` took."""
        with self._lock:
            self._taken -= size
        self._grant()
        if size >= LARGE:
            return_to_system()

    def _grant(self) -> None:
        with self._lock:
            while self._waiting and self._fits(self._waiting[0]):
                one = self._waiting.popleft()
                self._taken += one.size
                one.loop.call_soon_threadsafe(self._tell, one)

    def _fits(self, one: _Waiting) -> bool:
        return self._taken + one.size <= one.limit

    def _tell(self, one: _Waiting) -> None:
        if one.granted.cancelled():  # it was given up meanwhile
            self.give_back(one.size)
        else:
            one.granted.set_result(None)

    def _withdraw(self, one: _Waiting) -> None:
        with self._lock:
            if one in self._waiting:
                self._waiting.remove(one)
        self._grant()


BUDGET = DecodeBudget()
"""Of this process: its models share one memory."""


def check_memory(size: int, limit: int) -> None:
    """Raises InvalidImage for an image that alone takes more than the limit."""
    if size > limit:
        raise InvalidImage(
            f"Decoding this image takes {size // MEGABYTE} MiB of memory; at most "
            f"{limit // MEGABYTE} MiB are given to one. Send it with fewer pixels, or as baseline "
            f"JPEG."
        )
