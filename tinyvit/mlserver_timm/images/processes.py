"""The server's connections to the supervisor and to the decoders that it starts (worker.py)."""

import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mlserver_timm.images.worker import EXITED, NUMBER

if TYPE_CHECKING:
    from mlserver_timm.images.pool import DecoderPool

EXIT_PATIENCE = 1.0
"""Seconds to wait for the supervisor's report after a decoder's connection has ended, and for the
supervisor to end."""

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # Memory of freed small images is kept for the next one: 350 page faults less, 1.5 ms. That of
    # large ones goes back to the system.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20),
    # Large images get pages of 2 MiB: 10,000 page faults less for 12 megapixels, 18 ms of 110.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment variables of the supervisor and the decoders, for numpy and glibc (mallopt(3))."""


class DecoderProcess(asyncio.Protocol):
    """The connection to one decoder."""

    def __init__(self, pool: "DecoderPool", number: int) -> None:
        self.number = number
        self.exit_status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Exit status, set once the process has ended; negative for a signal."""
        self.shared = _shared_memory()
        """Memory shared with the decoder: first the image's bytes, then its pixels."""
        self._pool = pool
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.close()
        self._pool.decoder_ended(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._pool.answered(self, json.loads(line))

    def send(self, message: dict[str, Any]) -> None:
        """Send a request, or a reply to the decoder's question about it."""
        self._transport.write(json.dumps(message).encode() + b"\n")

    def share(self, payload: bytes | memoryview, shape: Sequence[int]) -> None:
        """Write an image's bytes for the next request, and make room for pixels of this shape."""
        os.pwrite(self.shared.fileno(), payload, 0)
        if os.fstat(self.shared.fileno()).st_size < math.prod(shape):
            os.ftruncate(self.shared.fileno(), math.prod(shape))

    def pixels(self, shape: Sequence[int]) -> np.ndarray:
        """Return the pixels that the decoder has written, uint8."""
        data = os.pread(self.shared.fileno(), math.prod(shape), 0)
        return np.frombuffer(data, np.uint8).reshape(shape)

    def close(self) -> None:
        """Let the process end once it has answered."""
        self._transport.close()


class Supervisor(asyncio.Protocol):
    """The process that starts decoders.

    Start it from the event loop's thread: it ends with the thread that started it.
    """

    def __init__(self, pool: "DecoderPool") -> None:
        self._pool = pool
        self._decoders: dict[int, DecoderProcess] = {}
        """Decoders by number, until the supervisor has reported their end."""
        self._count = 0

    async def start(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._process = _start_process(theirs)
        self._socket = ours
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.supervisor_ended()

    def data_received(self, data: bytes) -> None:
        for number, status in EXITED.iter_unpack(data):  # each report is sent at once
            self._decoders.pop(number).exit_status.set_result(status)

    async def start_decoder(self) -> DecoderProcess:
        """Return a new decoder; raises OSError if the supervisor has ended."""
        self._count += 1
        decoder = DecoderProcess(self._pool, self._count)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            descriptors = [theirs.fileno(), decoder.shared.fileno()]
            socket.send_fds(self._socket, [NUMBER.pack(decoder.number)], descriptors)
        self._decoders[decoder.number] = decoder
        await asyncio.get_running_loop().create_unix_connection(lambda: decoder, sock=ours)
        return decoder

    def kill(self, decoder: DecoderProcess) -> None:
        """Kill a decoder through the supervisor, which knows whether its process still runs."""
        with contextlib.suppress(OSError):
            self._socket.send(NUMBER.pack(decoder.number))

    def kill_all(self) -> None:
        """End the supervisor and all decoders at once."""
        self._process.kill()

    async def close(self) -> None:
        """Let the supervisor end, and wait for it."""
        self._transport.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, EXIT_PATIENCE)
        self._process.kill()


async def exit_status(decoder: DecoderProcess) -> int | None:
    """Return the exit status, negative for a signal; None without a report in EXIT_PATIENCE."""
    try:
        return await asyncio.wait_for(asyncio.shield(decoder.exit_status), EXIT_PATIENCE)
    except asyncio.TimeoutError:
        return None


def _start_process(connection: socket.socket) -> "subprocess.Popen[bytes]":
    folder = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mlserver_timm.images.worker"),
            *("supervisor", str(connection.fileno()), str(os.getpid())),
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
        start_new_session=True,  # Ctrl-C in the terminal must not end decoders
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])),
        },
    )


def _shared_memory() -> IO[bytes]:
    """Return a file in memory, or one without a name on the disk (macOS)."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
