"""The memory that the bodies of requests take, all of them together."""

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
from starlette.types import Message, Receive

from mlserver_timm.errors import BodiesFull, BodyTimedOut


class BodyBudget:
    """At most `max_bytes` of bodies are held at once, each until its request is answered.

    Where more arrives, the largest body that is not complete yet is given up, so that a few that
    never end keep no other out. Each has `timeout` seconds to arrive.
    """

    def __init__(self, max_bytes: int, timeout: float) -> None:
        self.max_bytes = max_bytes
        self.timeout = timeout
        self._bodies: set[Body] = set()
        self._held = 0

    @contextmanager
    def body(self) -> Iterator["Body"]:
        """The share of one request."""
        body = Body(self)
        self._bodies.add(body)
        try:
            yield body
        finally:
            self._forget(body)

    def add(self, body: "Body", size: int) -> None:
        """Counts so many bytes more of a body; raises BodiesFull where it is the one given up, also
        where it was given up before."""
        if not self.holds(body):
            raise BodiesFull(self.max_bytes)
        body.size += size
        self._held += size
        while self._held > self.max_bytes:
            candidates = {each for each in self._bodies if not each.complete} | {body}
            largest = max(candidates, key=lambda each: each.size)
            self._forget(largest)
            if largest is body:
                raise BodiesFull(self.max_bytes)
            largest.give_up()

    def holds(self, body: "Body") -> bool:
        """Whether it has not been given up."""
        return body in self._bodies

    def _forget(self, body: "Body") -> None:
        if self.holds(body):
            self._bodies.remove(body)
            self._held -= body.size


async def joined(chunks: AsyncIterator[bytes]) -> bytes:
    """A body in one piece; at no time is it there twice, as a list of chunks would have it."""
    with io.BytesIO() as body:
        async for chunk in chunks:
            body.write(chunk)
        return body.getvalue()


class Body:
    """What has arrived of one body."""

    def __init__(self, budget: BodyBudget) -> None:
        self.size = 0
        self.complete = False
        self._budget = budget
        self._deadline = anyio.current_time() + budget.timeout
        self._waiting = anyio.CancelScope()

    async def receive(self, receive: Receive) -> Message:
        """The next message of the connection; raises BodyTimedOut and BodiesFull."""
        if self.complete:
            return await receive()
        message = await self._in_time(receive)
        self.complete = not message.get("more_body")
        self.add(len(message.get("body", b"")))
        return message

    def add(self, size: int) -> None:
        """Counts so many bytes more; raises BodiesFull."""
        self._budget.add(self, size)

    def give_up(self) -> None:
        """Ends the wait for more of it with BodiesFull."""
        self._waiting.cancel()

    async def _in_time(self, receive: Receive) -> Message:
        if self._budget.holds(self):
            with anyio.CancelScope(deadline=self._deadline) as self._waiting:
                return await receive()
        if self._budget.holds(self):
            raise BodyTimedOut(self._budget.timeout)
        raise BodiesFull(self._budget.max_bytes)
