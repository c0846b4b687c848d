"""Convert a checkpoint's network for OpenVINO, in a process of its own: importing torch takes a
gigabyte and seconds.

python -m mlserver_timm.checkpoints.converter CHECKPOINT_FOLDER NAME OUT
"""

import json
import os
import shutil
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mlserver_timm.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    Description,
    describe,
    first_line,
)
from mlserver_timm.checkpoints.exported import ExportedModel
from mlserver_timm.checkpoints.network import network_of, to_openvino
from mlserver_timm.errors import CheckpointError

if TYPE_CHECKING:
    import openvino

FAILED, NOT_WRITTEN = 1, 3
"""Exit codes; a sentence on stdout says what is wrong with the checkpoint or with the disk."""

OWN_CARD = "README.md"


def convert_here(checkpoint: Checkpoint) -> "tuple[openvino.Model, Description]":
    """Return the network for OpenVINO, converted in this process; raises CheckpointError."""
    description = describe(checkpoint)
    network = network_of(checkpoint, description)
    return to_openvino(network, checkpoint, description.input_size), description


def main(folder: str, name: str, out: str) -> int:
    """Write the exported model to the existing folder `out`; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # systemd sends a stop to all
        signal.signal(number, signal.SIG_IGN)  # the converter ends with its parent
    threading.Thread(target=_end_with_parent, args=[out], daemon=True).start()
    checkpoint = Checkpoint(Path(folder), name)
    try:
        model, description = convert_here(checkpoint)
    except CheckpointError as error:
        print(error)
        return FAILED
    try:
        exported = ExportedModel(Path(out))
        exported.write(model, description, _card(checkpoint, description))
        exported.read()
    except (OSError, RuntimeError, CheckpointError) as error:
        print(first_line(error))
        return NOT_WRITTEN
    return 0


def _card(checkpoint: Checkpoint, description: Description) -> str:
    """Return a model card: what this is, how to serve it, and the checkpoint's own card."""
    height, width = description.input_size
    config = json.loads((checkpoint.folder / CONFIG).read_text())
    licence = (config.get("pretrained_cfg") or config).get(
        "license"
    ) or "not stated by the checkpoint"
    made_with = ", ".join(f"{name} {version(name)}" for name in ("openvino", "torch", "timm"))
    card = f"""# {checkpoint.name}, exported

A converted image classifier. Serving it needs neither torch nor timm.

| | |
|---|---|
| Architecture | {description.architecture} |
| Classes | {len(description.labels)} |
| Input | {height}x{width} RGB, {description.interpolation}, crop {description.crop_pct:g} |
| Precision of the weights | fp32 |
| Converted with | {made_with} |
| Licence of the weights | {licence} |

Serve it from the repository's root:

    MLSERVER_MODEL_URI=/path/to/this/folder mlserver start tinyvit

`sha256sum -c SHA256SUMS` checks the files. The server checks them, too, and refuses changed files.
To change the network, export the checkpoint again.
"""
    own = checkpoint.folder / OWN_CARD
    return f"{card}\n---\n\n{own.read_text(errors='replace')}" if own.is_file() else card


def _end_with_parent(out: str) -> None:
    sys.stdin.read()
    shutil.rmtree(out, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
