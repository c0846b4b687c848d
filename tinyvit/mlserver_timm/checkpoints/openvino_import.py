"""Import OpenVINO without its telemetry."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


def import_openvino() -> "openvino":
    """Return the `openvino` module.

    Its import reports to Google Analytics, by a process that stays as a zombie, and writes to
    ~/intel, unless `openvino_telemetry` cannot be imported.
    """
    telemetry = sys.modules.get("openvino_telemetry")
    if "openvino" not in sys.modules and not telemetry:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino

        return openvino
    finally:
        if not telemetry:  # another thread may have been first
            sys.modules.pop("openvino_telemetry", None)
