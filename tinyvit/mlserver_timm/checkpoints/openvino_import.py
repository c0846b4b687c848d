"""OpenVINO, imported so that it reports to nobody."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


def import_openvino() -> "openvino":
    """The `openvino` module. Importing it reports to Google Analytics, by a process that stays as a
    zombie, and writes to ~/intel; while `openvino_telemetry` cannot be imported it does neither."""
    telemetry = sys.modules.get("openvino_telemetry")
    if "openvino" not in sys.modules and not telemetry:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino

        return openvino
    finally:
        if not telemetry:  # another thread may have been first
            sys.modules.pop("openvino_telemetry", None)
