"""OpenVINO, imported so that it reports to nobody."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino


def import_openvino() -> "openvino":
    """The `openvino` module. Importing it reports to Google Analytics, by a process that stays as a
    zombie, and writes to ~/intel; while `openvino_telemetry` cannot be imported it does neither."""
    missing = object()
    known: Any = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino

        return openvino
    finally:
        if isinstance(known, ModuleType):
            sys.modules["openvino_telemetry"] = known
        else:
            del sys.modules["openvino_telemetry"]
