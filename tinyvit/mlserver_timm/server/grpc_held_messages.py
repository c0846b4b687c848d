"""The memory that the messages of gRPC take, all of them together."""

import asyncio
from typing import Any, Protocol

from mlserver_timm.errors import BodiesFull
from mlserver_timm.memory import return_to_system
from mlserver_timm.server.grpc_messages import ReceivedMessage

LARGE = 4 * 2**20
"""Bytes of a message from which on gRPC leaves behind what is worth giving back to the system."""

PAUSE = 0.5
"""Seconds without such a message until that is done."""


class Context(Protocol):
    """gRPC's, of one call."""

    def add_done_callback(self, callback: Any) -> None:
        """`callback(context)` is called at the end of the call."""
        ...


class HeldMessages:
    """At most `max_bytes` of messages are held at once, each until its call is over or, in a
    stream, the next one has come."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[Context, ReceivedMessage] = {}
        self._returning: asyncio.TimerHandle | None = None

    def hold(self, context: Context, message: ReceivedMessage) -> None:
        """Counts a message; raises BodiesFull."""
        if context not in self._held:
            context.add_done_callback(self._release)
        if message.size >= LARGE:
            context.add_done_callback(self._return_memory)
        self._held[context] = message
        if sum(each.size for each in self._held.values()) > self.max_bytes:
            message.release()
            raise BodiesFull(self.max_bytes)

    def _release(self, context: Context) -> None:
        self._held.pop(context).release()

    def _return_memory(self, context: Context) -> None:
        """On a thread, and once for calls that end together."""
        if self._returning:
            self._returning.cancel()
        loop = asyncio.get_running_loop()
        self._returning = loop.call_later(PAUSE, loop.run_in_executor, None, return_to_system)
