"""A worker stops working on what nobody waits for."""

import asyncio
import logging
from typing import Any

from mlserver.parallel.messages import ModelRequestMessage, ModelResponseMessage
from mlserver.parallel.worker import Worker

from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import ServedModels

FAULT = "A worker is not told that a request was given up, and computes it to the end."
UPSTREAM = "unreported; tests/patches/test_given_up_requests.py"
AFFECTS = ">=1.7.1,<1.8"

FORGET = "mlserver_timm.forget"
"""A message to a worker in the place of a method's name: give up the request in its argument."""

_under_way: "dict[str, asyncio.Task[Any] | None]" = {}


def apply() -> None:
    """Concerns this runtime's models alone: only for those is FORGET sent."""

    async def process_request(self: Worker, request: ModelRequestMessage) -> ModelResponseMessage:
        if request.method_name == FORGET:
            task = _under_way.get(request.method_args[0])
            if task:
                task.cancel()
            return ModelResponseMessage(id=request.id)
        if not ServedModels(self._model_registry).find(request.model_name, request.model_version):
            return await original(self, request)
        _under_way[request.id] = asyncio.current_task()
        try:
            return await original(self, request)
        finally:
            del _under_way[request.id]

    original = replace(Worker, "_process_request", process_request)
    logging.getLogger("mlserver.parallel").addFilter(_is_worth_a_line)


def forget(message: ModelRequestMessage) -> ModelRequestMessage:
    """What tells a worker that an earlier message was given up."""
    return ModelRequestMessage(
        model_name=message.model_name, method_name=FORGET, method_args=[message.id]
    )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not that a request was cancelled: this patch has done it."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, asyncio.CancelledError) and _is_under_way())


def _is_under_way() -> bool:
    return asyncio.current_task() in _under_way.values()
