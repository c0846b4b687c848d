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
"""Maximum size of a gRPC message, unless `grpc_max_message_length` is set. gRPC holds three copies
of each message that it delivers, and does not report the size of messages that are arriving."""

MAX_REPOSITORY_BYTES = 64 * 2**10
"""Maximum size of a body for MLServer's repository API, which takes a name and a few flags."""

ON_LOOP_BYTES = 64 * 2**10
"""Maximum size of a body or message that is parsed on the event loop, in 1 to 2 ms; a thread would
cost other requests more."""

READER_THREADS = 2
"""Threads that parse larger bodies or messages, so that one does not block all others."""

BODY_TIMEOUT = 120.0
"""Seconds until a body must be complete: a photograph of 5 MB takes as long at 350 kbit/s."""

STOP_TIMEOUT = 12.0
"""Seconds that a stop waits for unanswered requests; Kubernetes kills the process after 30 s."""

WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's window size for each Content-Encoding."""

INVALID_COMPRESSION = "The body is not valid {}: compress it again, or send it without compression."

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
        self.sizes: dict[Body, int] = {}
        """Bytes of each body that have arrived."""
        self.held = 0

    @contextmanager
    def body(self) -> Iterator["Body"]:
        """Yield the share of one request."""
        body = Body(self)
        self.sizes[body] = 0
        try:
            yield body
        finally:
            self.held -= self.sizes.pop(body, 0)  # 0 if it was dropped


class Body:
    """The share of one request: the bytes of its body count as they arrive."""

    def __init__(self, budget: BodyBudget) -> None:
        self.complete = False
        self._budget = budget
        self._deadline = anyio.current_time() + budget.timeout
        self._waiting = anyio.CancelScope()

    async def receive(self, receive: Receive, limit: int) -> Message:
        """Return the connection's next message; raises BodyTimedOut, BodiesFull, or BodyTooLarge
        beyond `limit` bytes."""
        if self.complete:
            return await receive()
        self._check_held()
        with anyio.CancelScope(deadline=self._deadline) as self._waiting:
            message = await receive()
            self.complete = not message.get("more_body")
            self.add(len(message.get("body", b"")))
            if self._budget.sizes[self] > limit:
                raise BodyTooLarge(limit)
            return message
        self._check_held()
        raise BodyTimedOut(self._budget.timeout)

    def add(self, size: int) -> None:
        """Count `size` more bytes; raises BodiesFull if the body is or was dropped."""
        self._check_held()
        budget = self._budget
        budget.sizes[self] += size
        budget.held += size
        while budget.held > budget.max_bytes:
            candidates = {each for each in budget.sizes if not each.complete} | {self}
            largest = max(candidates, key=budget.sizes.__getitem__)
            budget.held -= budget.sizes.pop(largest)
            self._check_held()
            largest._waiting.cancel()

    def _check_held(self) -> None:
        if self not in self._budget.sizes:
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
        raise InvalidRequest(INVALID_COMPRESSION.format(encoding)) from None
    if len(body) > limit:
        raise BodyTooLarge(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest(INVALID_COMPRESSION.format(encoding))
    return body
