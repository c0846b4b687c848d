"""Metrics where their folder was removed."""

import logging
from pathlib import Path
from typing import Any

from mlserver.metrics.prometheus import PrometheusEndpoint

from mlserver_timm.server.patches.replacing import replace

FAULT = "With workers, /metrics answers 500 for ever once the folder of the metrics was removed."
UPSTREAM = "unreported; tests/patches/test_removed_metrics_dir.py"
AFFECTS = ">=1.7.1,<1.8"

logger = logging.getLogger("mlserver.tinyvit")


def apply() -> None:
    def registry(self: PrometheusEndpoint) -> Any:
        folder = Path(self._settings.metrics_dir)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            logger.warning(
                "The folder of the metrics, %s, was removed, and with it what was counted. "
                "A restart counts anew.",
                folder,
            )
        return original.fget(self)

    original = replace(PrometheusEndpoint, "_registry", property(registry))
