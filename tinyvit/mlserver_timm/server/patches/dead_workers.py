"""Workers that die, several at once, and what they leave behind."""

import asyncio
import os
from multiprocessing.connection import wait
from typing import Any

from mlserver.parallel import InferencePoolRegistry
from mlserver.parallel.pool import InferencePool
from mlserver.parallel.worker import Worker

from mlserver_timm.server.patches.graceful_stop import is_stopping
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "Of several workers that die at once MLServer replaces one, since one SIGCHLD stands for all, "
    "takes the exit status of other children, and keeps each dead worker's pipes and threads."
)
UPSTREAM = "unreported; tests/patches/test_dead_workers.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    replace(InferencePoolRegistry, "_handle_worker_stop", _handle_worker_stop)


async def _handle_worker_stop(self: InferencePoolRegistry, *_: Any) -> None:
    if is_stopping():
        return
    pools = [self._default_pool, *self._pools.values()]
    dead = [(pool, worker) for pool in pools for worker in list(pool._workers.values())]
    await asyncio.gather(*[_replace_worker(p, w) for p, w in dead if _has_died(w)])


def _has_died(worker: Worker) -> bool:
    """Whether it has ended without having been told to."""
    return worker.exitcode is not None and not worker._requests._closed


async def _replace_worker(pool: InferencePool, worker: Worker) -> None:
    # MLServer's messages have the status as waitpid gives it.
    code = worker.exitcode or 0
    status = -code if code < 0 else code << 8
    await asyncio.gather(
        pool.on_worker_stop(worker.pid, status),
        asyncio.to_thread(_release, worker._requests),
        asyncio.to_thread(_release, worker._model_updates),
    )


def _release(queue: Any) -> None:
    """Closes both ends of a pipe that nobody reads any more.

    The thread that writes into it may be waiting for room: what it still has is read away.
    """
    if queue._thread is None:
        queue.close()
        queue._reader.close()
        queue._writer.close()
        return
    drain = os.dup(queue._reader.fileno())
    queue.close()
    while queue._thread.is_alive():
        if wait([drain], timeout=0.05):
            os.read(drain, 2**20)
    os.close(drain)
