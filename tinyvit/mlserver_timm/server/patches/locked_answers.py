"""A worker that is killed while it answers does not silence the others."""

import asyncio
import os
from typing import Any

from mlserver.parallel.dispatcher import Dispatcher
from mlserver.parallel.worker import Worker

from mlserver_timm.server.patches import processes
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "All workers answer through one pipe: one that is killed while it writes leaves its lock "
    "taken, and its message cut off, so that no answer of any worker arrives any more."
)
UPSTREAM = "unreported; tests/patches/test_locked_answers.py"
AFFECTS = ">=1.7.1,<1.8"

PATIENCE = 2.0
"""Seconds without any byte in the pipe until its lock counts as held by the dead."""

SIZE_FIELD = 8
"""Bytes of the longest field that comes before a message and has its size."""


def apply() -> None:
    def start(self: Dispatcher) -> None:
        _watch(self._responses)
        start_original(self)

    def on_worker_stop(self: Dispatcher, worker: Worker, exit_code: int) -> None:
        stop_original(self, worker, exit_code)
        asyncio.get_running_loop().run_in_executor(None, free, self._responses)

    start_original = replace(Dispatcher, "start", start)
    stop_original = replace(Dispatcher, "on_worker_stop", on_worker_stop)
    for worker in processes.workers():
        _watch(worker._responses)


class _Progress:
    """How far the reader of a pipe has come."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.missing = 0
        """Bytes of the message that is being read."""
        self.bytes_read = 0

    def receive(self, size: int) -> Any:
        """In the place of the connection's method of reading exactly `size` bytes."""
        self._in_message = size > SIZE_FIELD
        return type(self._reader)._recv(self._reader, size, self._read)

    def _read(self, handle: int, size: int) -> bytes:
        self.missing = size if self._in_message else 0
        chunk = os.read(handle, size)
        self.bytes_read += len(chunk)
        self.missing = size - len(chunk) if self._in_message else 0
        return chunk


def _watch(queue: Any) -> None:
    if "_recv" not in vars(queue._reader):
        queue._reader.progress = _Progress(queue._reader)
        queue._reader._recv = queue._reader.progress.receive


def free(queue: Any) -> None:
    """Frees the lock of the answers' pipe where its holder is dead, and completes the message that
    it has cut off: that one cannot be read and is passed over, the next one can."""
    progress = queue._reader.progress
    while not queue._wlock.acquire(timeout=PATIENCE):
        before = progress.bytes_read
        if not queue._reader.poll(PATIENCE) and progress.bytes_read == before:
            _write_zeros(queue._writer.fileno(), progress.missing)
            break
    queue._wlock.release()


def _write_zeros(descriptor: int, count: int) -> None:
    while count > 0:
        count -= os.write(descriptor, bytes(min(count, 2**16)))
