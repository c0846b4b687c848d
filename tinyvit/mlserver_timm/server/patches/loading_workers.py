"""A worker gets requests once it has its models."""

import itertools
from collections.abc import Iterator

from mlserver.parallel.dispatcher import Dispatcher
from mlserver.parallel.worker import Worker

from mlserver_timm.errors import NoWorkerReady
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "A worker that starts anew gets requests before its models are loaded, as soon as another one "
    "dies or is ready; with no worker left, the answer is an error about StopIteration."
)
UPSTREAM = "unreported; tests/patches/test_loading_workers.py"
AFFECTS = ">=1.7.1,<1.8"

_loading: set[int] = set()
"""Process ids."""


def apply() -> None:
    replace(Dispatcher, "on_worker_start", _on_worker_start)
    replace(Dispatcher, "on_worker_ready", _on_worker_ready)
    replace(Dispatcher, "_reset_round_robin", _reset_round_robin)
    replace(Dispatcher, "_get_worker", _get_worker)


def has_loaded_worker(dispatcher: Dispatcher) -> bool:
    """Whether any worker can take requests."""
    return not _loading.issuperset(dispatcher._workers)


async def _on_worker_start(self: Dispatcher, worker: Worker) -> None:
    async with self._worker_starting_lock:
        _loading.add(worker.pid)
        self._workers[worker.pid] = worker


def _on_worker_ready(self: Dispatcher, worker: Worker) -> None:
    _loading.discard(worker.pid)
    self._reset_round_robin()


def _reset_round_robin(self: Dispatcher) -> Iterator[int]:
    self._workers_round_robin = itertools.cycle([p for p in self._workers if p not in _loading])
    return self._workers_round_robin


def _get_worker(self: Dispatcher) -> tuple[Worker, int]:
    pid = next(self._workers_round_robin, None)
    if pid is None:
        raise NoWorkerReady()
    return self._workers[pid], pid
