"""What operators see: measurements in MLServer's metrics, and a log line for each refusal."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from mlserver_timm.errors import RequestFailed

METRICS = {
    "batch_size_images": "Images in a batch, as the engine got it",
    "queue_length_images": "Images waiting when a batch was taken",
    "decode_seconds": "Decoding, resizing and cropping of one image",
    "queue_seconds": "Waiting of one decoded image until its batch began",
    "engine_seconds": "Forward pass of one batch",
    "refused_invalid_requests": "Requests refused because nothing in them could be answered",
    "refused_busy_requests": "Requests refused because the queue was full",
    "refused_timeout_requests": "Requests given up because they took too long",
    "failed_requests": "Requests that failed by a fault of the server",
}
"""Each refusal observes 1, so `_count` is the counter."""

BUSY_LINES = 1.0
"""Seconds between two log lines about requests refused because the server is busy: in a flood a
line for each would cost as much as the refusals themselves."""

logger = logging.getLogger("mlserver.tinyvit")


class RuntimeMetrics:
    """The measurements of one model."""

    def __init__(self, settings: ModelSettings) -> None:
        labels = {"model_name": settings.name, "model_version": settings.version or ""}
        # Made now: a first refusal counts as an increase only where a zero was seen before.
        self._metrics = {
            name: _histogram(f"tinyvit_{name}", description).labels(**labels)
            for name, description in METRICS.items()
        }
        self._busy_unlogged = 0
        self._busy_logged = -BUSY_LINES

    def observe(self, name: str, value: float) -> None:
        """Adds a measurement, from any thread."""
        self._metrics[name].observe(value)

    @contextmanager
    def request(self, identifier: str | None) -> Iterator[None]:
        """Counts and logs the request that is refused or fails inside."""
        try:
            yield
        except MLServerError as error:
            self.refused(identifier, error)
            raise
        except Exception:
            self.observe("failed_requests", 1)
            logger.exception("Request %s failed.", json.dumps(identifier))
            raise RequestFailed() from None

    def refused(self, identifier: str | None, error: MLServerError) -> None:
        """Counts and logs a request that was answered with `error`."""
        self.observe(_metric(error.status_code), 1)
        if error.status_code == 503:
            self._log_busy(identifier, error)
        elif error.status_code != 500:  # whoever failed has logged it
            _log(f"refused request {identifier}: {error}")

    def _log_busy(self, identifier: str | None, error: MLServerError) -> None:
        now = time.monotonic()
        if now < self._busy_logged + BUSY_LINES:
            self._busy_unlogged += 1
            return
        others = f" ({self._busy_unlogged} more since such a line)" if self._busy_unlogged else ""
        _log(f"refused request {identifier}: {error}{others}")
        self._busy_logged, self._busy_unlogged = now, 0


def _histogram(name: str, description: str) -> Histogram:
    """The one of that name in this process; `mlserver.register` makes metrics that are shown only
    where there are workers (SeldonIO/MLServer issue 1151)."""
    known = REGISTRY._names_to_collectors.get(name)
    if isinstance(known, Histogram):
        return known
    return Histogram(name, description, labelnames=["model_name", "model_version"])


def loaded_models() -> Gauge:
    """Return the gauge of models of this runtime that are loaded; 0 from the server's start."""
    name = "tinyvit_loaded_models"
    gauge = REGISTRY._names_to_collectors.get(name)
    if isinstance(gauge, Gauge):
        return gauge
    return Gauge(name, "Models of this runtime that are loaded", multiprocess_mode="livesum")


def decoder_restarts() -> Counter:
    """Return the counter of image decoders that ended and were replaced."""
    name = "tinyvit_decoder_restarts"
    counter = REGISTRY._names_to_collectors.get(name)
    if isinstance(counter, Counter):
        return counter
    return Counter(name, "Image decoders that ended by a crash or a limit and were replaced")


def _metric(status: int) -> str:
    return {
        503: "refused_busy_requests",
        504: "refused_timeout_requests",
        500: "failed_requests",
    }.get(status, "refused_invalid_requests")


def _log(sentence: str) -> None:
    """Escaped, because MLServer's structured logging puts messages into JSON as they are."""
    logger.warning("%s", json.dumps(sentence, ensure_ascii=False)[1:-1])
