"""Answers of workers that nobody waits for any more."""

import asyncio
import time
from typing import Any

from mlserver.parallel.dispatcher import AsyncResponses
from mlserver.parallel.errors import WorkerStop
from mlserver.parallel.logging import logger
from mlserver.parallel.messages import ModelResponseMessage
from mlserver.parallel.worker import Worker

from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "The loop that reads the workers' answers crashes on the answer to a request that was given "
    "up, as when a gRPC client has gone."
)
UPSTREAM = "https://github.com/SeldonIO/MLServer/issues/1652"
AFFECTS = ">=1.7.1,<1.8"

LAST_ANSWERS: dict[int, float] = {}
"""When each worker last answered, by its process id; the monotonic clock."""


def apply() -> None:
    replace(AsyncResponses, "resolve", _resolve)
    replace(AsyncResponses, "cancel", _cancel)


def _resolve(self: AsyncResponses, response: ModelResponseMessage) -> None:
    future = self._futures.get(response.id)
    pid = self._futures_map.get(response.id)
    if future is None or pid is None:
        return
    LAST_ANSWERS[pid] = time.monotonic()
    future.get_loop().call_soon_threadsafe(_settle, future, response.exception, response)


def _cancel(self: AsyncResponses, worker: Worker, exit_code: int) -> None:
    """Ends the requests that a worker has taken with it."""
    LAST_ANSWERS.pop(worker.pid, None)
    lost = list(self._workers_map.pop(worker.pid, ()))
    self._workers_map[worker.pid].update(lost)  # each is taken out as its request ends
    if lost:
        logger.info(
            f"Cancelling {len(lost)} in-flight requests for worker {worker.pid} which died "
            f"unexpectedly with exit code {exit_code}..."
        )
    for message_id in lost:
        future = self._futures[message_id]
        future.get_loop().call_soon_threadsafe(_settle, future, WorkerStop(exit_code), None)


def _settle(future: "asyncio.Future[Any]", error: BaseException | None, result: Any) -> None:
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(result)
