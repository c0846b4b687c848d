"""The two networks that every server is measured with."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(tempfile.gettempdir()) / "tinyvit-benchmark"
"""Outlives a run, so that the checkpoint is made once."""

ARCHITECTURE = "tiny_vit_5m_224.dist_in22k"

MAKE_CHECKPOINT = f"""
import sys, timm, torch
torch.manual_seed(0)
network = timm.create_model({ARCHITECTURE!r}, pretrained=False)
timm.models.save_for_hf(network, sys.argv[1], safe_serialization=True)
"""


def full_size() -> Path:
    """Return a folder with the full-size network and seeded weights, made the first time.

    A process of its own makes it, so that this one shares no page of torch with the servers.
    """
    folder = CACHE / ARCHITECTURE
    if not (folder / "model.safetensors").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            checkpoint = Path(draft) / "checkpoint"
            subprocess.run([sys.executable, "-c", MAKE_CHECKPOINT, str(checkpoint)], check=True)
            checkpoint.rename(folder)
    return folder


@dataclass(frozen=True)
class Network:
    """A network, where its checkpoint is, and its converted form."""

    name: str
    description: str
    checkpoint: Callable[[], Path]

    def exported(self, folder: Path) -> Path:
        """Return the converted network below `folder`; this runtime exports it the first time."""
        out = folder / self.name
        if not out.exists():
            command = [sys.executable, "-m", "mlserver_timm.checkpoints.export"]
            command += [str(self.checkpoint()), str(out)]
            subprocess.run(command, cwd=ROOT / "tinyvit", check=True, stdout=subprocess.DEVNULL)
        return out


TINYVIT = Network("TinyViT-5M", f"{ARCHITECTURE}, 21841 classes, seeded weights", full_size)
SAMPLE = Network(
    "EfficientNet-Lite0",
    "the bundled sample, tf_efficientnet_lite0, 1000 classes",
    lambda: ROOT / "tinyvit" / "sample",
)
NETWORKS = (TINYVIT, SAMPLE)
