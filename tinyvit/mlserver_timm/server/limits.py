"""Limits on requests: the size of a body and of all bodies together, and their time."""

import io
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
from starlette.types import Message, Receive

from mlserver_timm.errors import BodiesFull, BodyTimedOut, BodyTooLarge, InvalidRequest
from mlserver_timm.memory import share

MAX_HELD_BYTES = share(1 / 8, 128 * 2**20)
"""Maximum size of all bodies together, and of all gRPC messages: two of the largest bodies, or
2,000 photographs of 64 KB, but at most an eighth of the container's memory."""

MAX_BODY_BYTES = min(64 * 2**20, MAX_HELD_BYTES)
"""Maximum size of a body, also after decompression."""

MAX_GRPC_BYTES = share(1 / 64, 48 * 2**20)
"""Maximum size of a gRPC message, unless `grpc_max_message_length` is set: gRPC holds each three
times as it hands it over, and does not tell how large those are that are still arriving."""

MAX_REPOSITORY_BYTES = 64 * 2**10
"""Maximum size of a body for MLServer's repository API, which takes a name and a few flags."""

BODY_TIMEOUT = 120.0
"""Seconds until a body must be complete: a photograph of 5 MB takes as long at 350 kbit/s."""

STOP_TIMEOUT = 12.0
"""Seconds that a stop waits for unanswered requests; Kubernetes kills the process after 30 s."""

WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's window size for each Content-Encoding."""

ANY_WINDOW = 47
"""zlib's window size for gzip or deflate, whichever it is."""

MAX_RATIO = 100
"""Maximum ratio of decompression: pixels as JSON shrink to a tenth, hardly ever to a hundredth."""

FREE_BYTES = 16 * 2**20
"""Size to which a body may be decompressed at any ratio: an image of one color shrinks to a
thousandth."""


class BodyBudget:
    """Holds at most `max_bytes` of bodies at once, each until its request is answered.

    If more arrives, the largest incomplete body is dropped, so that a few that never end do not
    block all others. Each body has `timeout` seconds to arrive.
    """

    def __init__(self, max_bytes: int, timeout: float) -> None:
        self.max_bytes = max_bytes
        self.timeout = timeout
        self._bodies: set[Body] = set()
        self._held = 0

    @contextmanager
    def body(self) -> Iterator["Body"]:
        """Yield the share of one request."""
        body = Body(self)
        self._bodies.add(body)
        try:
            yield body
        finally:
            self._release(body)

    def add(self, body: "Body", size: int) -> None:
        """Count `size` more bytes of a body; raise BodiesFull if it is or was dropped."""
        if not self.holds(body):
            raise BodiesFull(self.max_bytes)
        body.size += size
        self._held += size
        while self._held > self.max_bytes:
            candidates = {each for each in self._bodies if not each.complete} | {body}
            largest = max(candidates, key=lambda each: each.size)
            self._release(largest)
            if largest is body:
                raise BodiesFull(self.max_bytes)
            largest.drop()

    def holds(self, body: "Body") -> bool:
        """Return whether the body was not dropped."""
        return body in self._bodies

    def _release(self, body: "Body") -> None:
        if self.holds(body):
            self._bodies.remove(body)
            self._held -= body.size


class Body:
    """The bytes of one body that have arrived."""

    def __init__(self, budget: BodyBudget) -> None:
        self.size = 0
        self.complete = False
        self._budget = budget
        self._deadline = anyio.current_time() + budget.timeout
        self._waiting = anyio.CancelScope()

    async def receive(self, receive: Receive) -> Message:
        """Return the connection's next message; raises BodyTimedOut or BodiesFull."""
        if self.complete:
            return await receive()
        message = await self._in_time(receive)
        self.complete = not message.get("more_body")
        self.add(len(message.get("body", b"")))
        return message

    def add(self, size: int) -> None:
        """Count `size` more bytes; raises BodiesFull."""
        self._budget.add(self, size)

    def drop(self) -> None:
        """End the wait for the rest of the body with BodiesFull."""
        self._waiting.cancel()

    async def _in_time(self, receive: Receive) -> Message:
        if self._budget.holds(self):
            with anyio.CancelScope(deadline=self._deadline) as self._waiting:
                return await receive()
        if self._budget.holds(self):
            raise BodyTimedOut(self._budget.timeout)
        raise BodiesFull(self._budget.max_bytes)


async def joined(chunks: AsyncIterator[bytes]) -> bytes:
    """Return a body in one piece, without holding it twice as a list of chunks would."""
    with io.BytesIO() as body:
        async for chunk in chunks:
            body.write(chunk)
        return body.getvalue()


def max_decompressed(size: int, limit: int, free: int = FREE_BYTES) -> int:
    """Return the size to which `size` bytes may be decompressed: at least `free`, at most `limit`,
    both in bytes."""
    return min(limit, max(free, MAX_RATIO * size))


def decompress(compressed: bytes, encoding: str, limit: int) -> bytes:
    """Return the decompressed body.

    Raises BodyTooLarge if it has more than `limit` bytes, and InvalidRequest if it is cut off,
    continues after its end or is not of this encoding.
    """
    decompressor = zlib.decompressobj(WINDOWS[encoding])
    try:
        body = decompressor.decompress(compressed, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"The body is not valid {encoding}.") from None
    if len(body) > limit:
        raise BodyTooLarge(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest(f"The body is not valid {encoding}.")
    return body


def decompress_start(compressed: bytes, size: int) -> bytes:
    """Return at most the first `size` bytes of a body compressed with gzip or deflate."""
    try:
        return zlib.decompressobj(ANY_WINDOW).decompress(compressed, size)
    except zlib.error:
        return b""
