"""Chooses the engine for a checkpoint and warms it up."""

import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mlserver_timm.checkpoints.checkpoint import Checkpoint, Description, describe, first_line
from mlserver_timm.checkpoints.export import check_installed, convert
from mlserver_timm.checkpoints.exported import ExportedModel
from mlserver_timm.checkpoints.network import network_of
from mlserver_timm.errors import CheckpointError, EngineUnavailable, SettingsError
from mlserver_timm.inference.engines.base import Engine
from mlserver_timm.inference.engines.openvino_engine import OpenVINOEngine
from mlserver_timm.inference.engines.torch_engine import TorchEngine
from mlserver_timm.settings import RuntimeSettings

logger = logging.getLogger("mlserver.tinyvit")

MAX_STREAMS = 4
"""Maximum number of streams: each has buffers of its own, some 100 MB."""


def create_engine(
    checkpoint: Checkpoint,
    settings: RuntimeSettings,
    num_threads: int,
    max_batch_size: int,
    undivided: bool = False,
) -> tuple[Engine, Description]:
    """Return the engine for a checkpoint, warmed up, and the checkpoint's description.

    If `undivided`, each batch is computed as a whole, in one stream. Raises CheckpointError if the
    checkpoint cannot be loaded, EngineUnavailable if a library is not installed, and SettingsError
    if the engine 'torch' is set for an exported network.
    """
    if _takes_torch(settings.engine, checkpoint):
        check_installed(checkpoint, ("torch", "timm"))
        description = describe(checkpoint)
        network = network_of(checkpoint, description)
        engine: Engine = TorchEngine(
            network, network.outputs, settings.precision, num_threads, max_batch_size
        )
    else:
        if not _installed("openvino"):
            raise EngineUnavailable("The engine 'openvino' is not installed; pip install openvino.")
        if checkpoint.exported:
            model, description = ExportedModel(checkpoint.folder).read()
        else:
            model, description = convert(checkpoint, settings.cache_dir)
        streams = 1 if undivided else MAX_STREAMS
        try:
            engine = OpenVINOEngine(model, settings.precision, num_threads, max_batch_size, streams)
        except RuntimeError as error:
            raise CheckpointError(
                f"OpenVINO cannot compute {checkpoint.name} on this machine: {first_line(error)}."
            ) from None
    warm_up(engine, description.input_size)
    _warn_assumed_labels(checkpoint, description)
    return engine, description


def _warn_assumed_labels(checkpoint: Checkpoint, description: Description) -> None:
    is_timms_own = checkpoint.name.startswith("timm/")
    if description.assumed_labels and not (checkpoint.fallback or is_timms_own):
        logger.warning(
            "%s has no label_names: its %d classes get the labels of %s. If it was trained on "
            "other classes, add label_names to its config.json.",
            checkpoint.name,
            len(description.labels),
            description.assumed_labels,
        )


def _takes_torch(kind: str, checkpoint: Checkpoint) -> bool:
    if not checkpoint.exported:
        return kind == "torch" or (kind == "auto" and (_has_gpu() or not _installed("openvino")))
    if kind == "torch":
        raise SettingsError(
            f"The engine 'torch' cannot compute the exported network {checkpoint.folder}: set the "
            f"engine to 'openvino' or 'auto'."
        )
    return False


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _has_gpu() -> bool:
    if not Path("/proc/driver/nvidia/version").exists():  # importing torch to ask takes seconds
        return False
    import torch

    return torch.cuda.is_available()


def warm_up(engine: Engine, size: tuple[int, int]) -> None:
    """Compute every batch size once in every stream: the first call with a shape compiles kernels
    for it."""
    pixels = np.zeros((engine.images_per_request, *size, 3), np.uint8)
    engine.infer_latency(pixels[:1], engine.outputs)
    with ThreadPoolExecutor(engine.num_streams) as threads:
        for n in range(1, engine.images_per_request + 1):
            batches = [pixels[:n]] * engine.num_streams
            list(threads.map(lambda batch: engine.infer_throughput(batch, engine.outputs), batches))
