"""Clients that send requests on threads of their own until a block ends."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Self = TypeVar("Self", bound="ClientThreads")

PATIENCE = 60.0
"""Seconds in which the last requests must be answered."""


class ClientThreads:
    """Starts each of `clients` on a thread; a client returns once `ended` is set."""

    def __init__(self, clients: Sequence[Callable[[], None]]) -> None:
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=client, daemon=True) for client in clients]

    def __enter__(self: Self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request got no answer"
