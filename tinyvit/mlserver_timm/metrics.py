"""What operators see: measurements in MLServer's metrics, and a log line for each refusal."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from mlserver_timm.errors import RequestFailed, short

METRICS = {
    "batch_size_images": "Images in a batch, as the engine got it",
    "queue_length_images": "Images waiting when a batch was taken",
    "decode_seconds": "Decoding, resizing and cropping of one image",
    "queue_seconds": "Waiting of one decoded image until its batch began",
    "engine_seconds": "Forward pass of one batch",
    "refused_invalid_requests": "Requests refused because they were invalid",
    "refused_busy_requests": "Requests refused because the queue was full",
    "refused_timeout_requests": "Requests that timed out",
    "failed_requests": "Requests that failed by a fault of the server",
}
"""Each refusal observes 1, so `_count` is the counter."""

REFUSALS = {
    500: "failed_requests",
    503: "refused_busy_requests",
    504: "refused_timeout_requests",
}
"""Metrics by status; all other statuses mean an invalid request."""

BUSY_LINES = 1.0
"""Minimum seconds between two log lines about requests refused because the server is busy: in a
flood, a line for each would cost as much as the refusals themselves."""

MAX_LINE = 1000
"""Characters of a log line about a refusal."""

logger = logging.getLogger("mlserver.tinyvit")

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""The id by which the client, or a proxy, finds the current request in all logs."""


def note_correlation(headers: Mapping[str, str]) -> None:
    """Keep the current request's `X-Request-Id` or `traceparent` for its log lines."""
    correlation_id.set(headers.get("x-request-id") or headers.get("traceparent"))


class RuntimeMetrics:
    """The measurements of one model."""

    def __init__(self, settings: ModelSettings) -> None:
        labels = {"model_name": settings.name, "model_version": settings.version or ""}
        # Prometheus counts a first refusal as an increase only if it has seen a zero before.
        self._metrics = {
            name: _metric(Histogram, f"tinyvit_{name}", text, labelnames=[*labels]).labels(**labels)
            for name, text in METRICS.items()
        }
        self._busy_unlogged = 0
        self._busy_logged = -BUSY_LINES

    def observe(self, name: str, value: float) -> None:
        """Add a measurement, from any thread."""
        self._metrics[name].observe(value)

    @contextmanager
    def request(self, identifier: str | None) -> Iterator[None]:
        """Count and log the request that is refused or fails inside."""
        try:
            yield
        except MLServerError as error:
            self.refused(identifier, error)
            raise
        except Exception:
            self.observe("failed_requests", 1)
            logger.exception("%s failed.", _named("Request", identifier))
            raise RequestFailed() from None

    def refused(self, identifier: str | None, error: MLServerError) -> None:
        """Count and log a request that was answered with `error`."""
        self.observe(REFUSALS.get(error.status_code, "refused_invalid_requests"), 1)
        line = f"{_named('refused request', identifier)}: {error}"
        if error.status_code == 503:
            self._log_busy(line)
        elif error.status_code != 500:  # the place that raised it has logged it
            _log(line)

    def _log_busy(self, line: str) -> None:
        now = time.monotonic()
        if now < self._busy_logged + BUSY_LINES:
            self._busy_unlogged += 1
            return
        others = f" ({self._busy_unlogged} more refused since)" if self._busy_unlogged else ""
        _log(line + others)
        self._busy_logged, self._busy_unlogged = now, 0


def _named(what: str, identifier: str | None) -> str:
    """Return how a log line names a request, short and on one line."""
    correlation = correlation_id.get()
    suffix = f" ({short(correlation)})" if correlation else ""
    return f"{what} {short(str(identifier))}{suffix}"


def loaded_models() -> Gauge:
    """Return the gauge of models of this runtime that are loaded; 0 from the server's start."""
    documentation = "Models of this runtime that are loaded"
    return _metric(Gauge, "tinyvit_loaded_models", documentation, multiprocess_mode="livesum")


def decoder_restarts() -> Counter:
    """Return the counter of image decoders that ended and were replaced."""
    documentation = "Image decoders that ended by a crash or a limit and were replaced"
    return _metric(Counter, "tinyvit_decoder_restarts", documentation)


def _metric(kind: type[Metric], name: str, documentation: str, **options: Any) -> Metric:
    """Return this process's metric of that name; `mlserver.register` makes metrics that are shown
    only with workers (SeldonIO/MLServer issue 1151)."""
    metric = REGISTRY._names_to_collectors.get(name)
    return metric if isinstance(metric, kind) else kind(name, documentation, **options)


def _log(line: str) -> None:
    logger.warning("%s", short(line, MAX_LINE))
