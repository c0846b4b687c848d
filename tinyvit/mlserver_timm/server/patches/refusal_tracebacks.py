"""No traceback in the log for what is one sentence and has been logged as such."""

import logging
from typing import Any

from mlserver_timm.errors import TimmRuntimeError

FAULT = (
    "MLServer logs a traceback of dozens of lines for each request that a runtime refuses over "
    "gRPC or in a worker, and for a model that says in one sentence why it cannot be loaded."
)
UPSTREAM = "unreported; tests/patches/test_refusal_tracebacks.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Concerns errors of this runtime alone: those of other models keep their tracebacks."""
    logging.getLogger("mlserver").addFilter(_without_traceback)
    logging.getLogger("mlserver.grpc").addFilter(_is_worth_a_line)
    logging.getLogger("mlserver.parallel").addFilter(_is_worth_a_line)


def is_our_error(error: Any) -> bool:
    """Return whether an exception belongs to this runtime, also if a worker raised it."""
    return isinstance(error, TimmRuntimeError)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not _is_ours(record)


def _without_traceback(record: logging.LogRecord) -> bool:
    if _is_ours(record):
        record.exc_info = None
    return True


def _is_ours(record: logging.LogRecord) -> bool:
    return bool(record.exc_info) and is_our_error(record.exc_info[1])  # type: ignore[index]
