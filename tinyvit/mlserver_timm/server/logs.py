"""Structured logs: with MLServer's `use_structured_logging`, each line is a JSON object."""

import json
import logging
import sys
from datetime import datetime, timezone

from mlserver.context import model_name_var, model_version_var
from mlserver.logging import get_logger

from mlserver_timm.errors import short
from mlserver_timm.metrics import correlation_id

LOGGERS = ("mlserver", "uvicorn", "uvicorn.access", "uvicorn.error")
"""Loggers with handlers of their own, which are removed: their lines go to the root logger's."""


class JsonFormatter(logging.Formatter):
    """Formats a record as MLServer names its fields, valid whatever the message contains."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; `time` is UTC, and what is unknown is left out."""
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "name": record.name,
            "level": record.levelname,
            "message": record.getMessage(),
            "model_name": model_name_var.get(""),
            "model_version": model_version_var.get(""),
            "request_id": short(correlation_id.get() or ""),
            "exception": record.exc_info and self.formatException(record.exc_info),
        }
        return json.dumps({name: value for name, value in fields.items() if value})


def log_json() -> None:
    """Write the lines of all loggers, warnings and an uncaught exception to stdout as JSON."""
    root = logging.getLogger()
    if not is_json():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if logger.handlers or logger.propagate:  # else MLServer has turned the access log off
            logger.handlers.clear()
            logger.propagate = True


def is_json() -> bool:
    """Return whether the lines of all loggers are JSON."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def log_last_words(sentence: str) -> None:
    """Print why the server stops, as the log's last line."""
    if is_json():
        get_logger().critical("%s", sentence)
    else:
        print(sentence, file=sys.stderr)


def _log_uncaught(*exception: object) -> None:
    get_logger().critical("Uncaught exception.", exc_info=exception)
