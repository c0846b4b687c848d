"""The forward pass: uint8 pixels in, class probabilities out, by OpenVINO or by torch."""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from mlserver.errors import MLServerError

from checkpoint import Description, Source, describe, load_network

if TYPE_CHECKING:
    import openvino
    import torch

Precision = Literal["fp32", "bf16"]

logger = logging.getLogger("mlserver.tinyvit")


class EngineError(MLServerError):
    """The engine that the settings ask for cannot be had on this machine."""


class Engine(Protocol):
    """A compiled network. One call at a time; the caller sees to that."""

    name: str
    """What the metadata tells, such as `openvino` or `torch on cpu`."""
    precision: str
    """What is really computed in, which may differ from what was asked for."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """float32 probabilities `[N,classes]` of uint8 RGB pixels `[N,H,W,3]`."""
        ...


def create_engine(
    kind: Literal["auto", "openvino", "torch"],
    source: Source,
    precision: Precision,
    num_threads: int,
    cache_dir: Path,
) -> tuple[Engine, Description]:
    """The network of `source`, ready to be called, and what it says of itself.

    Raises CheckpointError for a checkpoint that cannot be loaded, EngineError for an engine that
    is not installed.
    """
    if kind == "openvino" and not _installed("openvino"):
        raise EngineError("The engine 'openvino' is not installed; pip install openvino.")
    if kind == "torch" or (kind == "auto" and (_has_gpu() or not _installed("openvino"))):
        description = describe(source)
        return TorchEngine(_network(source, description), precision, num_threads), description
    converted, description = convert(source, cache_dir)
    return OpenVINOEngine(converted, precision, num_threads), description


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _has_gpu() -> bool:
    if not Path("/proc/driver/nvidia/version").exists():  # importing torch to ask takes seconds
        return False
    import torch

    return torch.cuda.is_available()


def available_cores() -> int:
    """Cores this process may use: its affinity, and the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_quota() or cores or 1))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole cores of the CPU quota, rounded up; cgroup v2, else v1; None where there is none."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return None if quota == "max" or int(quota) < 1 else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _network(source: Source, description: Description) -> "torch.nn.Module":
    """The checkpoint's network between pixels and probabilities."""
    import torch

    class PixelsToProbabilities(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network
            std = torch.tensor(description.std)
            mean = torch.tensor(description.mean)
            self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
            return self.network(x).float().softmax(-1)

    return PixelsToProbabilities(load_network(source)).eval()


class TorchEngine:
    """Eager torch, channels last; on the GPU where there is one."""

    def __init__(self, network: "torch.nn.Module", precision: Precision, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self._autocast = precision == "bf16"
        self.name = f"torch on {self._device.type}"
        self.precision: str = precision

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        torch = self._torch
        batch = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
        ):
            return self._network(batch).cpu().numpy()


class OpenVINOEngine:
    """OpenVINO on the CPU, one stream on all threads."""

    name = "openvino"

    def __init__(self, model: "openvino.Model", precision: Precision, num_threads: int) -> None:
        import openvino

        asked = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                # Left alone, OpenVINO computes in bfloat16 wherever the processor can.
                "INFERENCE_PRECISION_HINT": asked[precision],
                "INFERENCE_NUM_THREADS": num_threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        self.precision = next((name for name, kind in asked.items() if kind == used), str(used))
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        results = self._request.infer([pixels], share_inputs=True)
        return results[0].copy()  # the next call writes over what this one returned


# --- Conversion for OpenVINO, and its cache ---------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """A folder with one converted network, written whole or not at all, checked when read."""

    folder: Path

    MODEL, BINARY, DESCRIPTION = "model.xml", "model.bin", "description.json"

    def read(self) -> "tuple[openvino.Model, Description] | None":
        """What was written, or None where nothing was or any file has changed since."""
        import openvino

        try:
            content = json.loads((self.folder / self.DESCRIPTION).read_text())
            if content.pop("digests") != self._digests(self.folder):
                raise ValueError("its files have changed")
            content["input_size"] = tuple(content["input_size"])
            model = openvino.Core().read_model(self.folder / self.MODEL)
            return model, Description(**content)
        except FileNotFoundError:
            return None
        except Exception as error:  # damage takes any form, and a new conversion mends it
            logger.warning("Converting again: the cache %s is damaged (%s).", self.folder, error)
            return None

    def write(self, model: "openvino.Model", description: Description) -> None:
        """Keeps the network where the folder can be written; warns where it cannot."""
        import openvino

        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix="."))
            try:
                openvino.save_model(model, draft / self.MODEL, compress_to_fp16=False)
                content = asdict(description) | {"digests": self._digests(draft)}
                (draft / self.DESCRIPTION).write_text(json.dumps(content))
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(draft, self.folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            logger.warning("The converted network is not kept for the next start: %s", error)

    def _digests(self, folder: Path) -> dict[str, str]:
        return {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (self.MODEL, self.BINARY)
        }


def convert(source: Source, cache_dir: Path) -> "tuple[openvino.Model, Description]":
    """The network of `source` as OpenVINO's, from the cache where it holds the very same."""
    cache = Cache(cache_dir.expanduser() / _key(source))
    known = cache.read()
    if known:
        return known
    description = describe(source)
    logger.info("Converting %s for OpenVINO; the next start finds it done.", source.name)
    model = _trace(_network(source, description), description.input_size)
    cache.write(model, description)
    return model, description


def _key(source: Source) -> str:
    """Names everything the converted network is made from: weights, code and libraries."""
    code = b"".join(
        Path(__file__).with_name(n).read_bytes() for n in ("engine.py", "checkpoint.py")
    )
    libraries = [f"{name}=={version(name)}" for name in ("openvino", "torch", "timm")]
    parts = [source.digest(), hashlib.sha256(code).hexdigest(), *libraries]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _trace(network: "torch.nn.Module", input_size: tuple[int, int]) -> "openvino.Model":
    """OpenVINO's frontend directly: openvino.convert_model reports its use to Intel by default."""
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Sizes that tracing makes constant are constant: only the batch varies.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        decoder = TorchScriptPythonDecoder(network, example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape(openvino.PartialShape([-1, *input_size, 3]))
    return model


def warm_up(engine: Callable[[np.ndarray], Any], size: tuple[int, int], batches: range) -> None:
    """Runs every batch size once: the first run of a shape compiles kernels for it."""
    for n in batches:
        engine(np.zeros((n, *size, 3), np.uint8))
