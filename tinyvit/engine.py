"""The forward pass: uint8 pixels in, class probabilities out, by OpenVINO or by torch."""

import importlib.util
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from mlserver.errors import MLServerError

from checkpoint import Description, Source, describe
from conversion import convert, pixels_to_probabilities

if TYPE_CHECKING:
    import openvino
    import torch

Precision = Literal["fp32", "bf16"]

MAX_STREAMS = 4
"""Each costs memory for batches of its own, some 100 MB."""

LANES = 2
"""For each stream: one call that it computes, and one that waits for it."""


class EngineError(MLServerError):
    """The engine that the settings ask for cannot be had on this machine."""


class Engine(Protocol):
    """A compiled network. What runs at once is for the caller to see to: one call of the engine
    itself, or as many of `in_stream` as it has lanes."""

    streams: int
    """How many calls of `in_stream` it computes at once, those that came first."""
    lanes: int
    """How many it takes at once; those beyond its streams wait inside, ready to be computed."""
    share: int
    """The most images that each of them may hold."""
    name: str
    """What the metadata tells, such as `openvino` or `torch on cpu`."""
    precision: str
    """What is really computed in, which may differ from what was asked for."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """float32 probabilities `[N,classes]` of uint8 RGB pixels `[N,H,W,3]`, on all threads."""
        ...

    def in_stream(self, pixels: np.ndarray) -> np.ndarray:
        """The same on one stream's share of the threads."""
        ...


def create_engine(
    kind: Literal["auto", "openvino", "torch"],
    source: Source,
    precision: Precision,
    num_threads: int,
    cache_dir: Path,
    max_batch_size: int,
    max_streams: int = MAX_STREAMS,
) -> tuple[Engine, Description]:
    """The network of `source`, ready to be called, and what it says of itself. Of `max_batch_size`
    images each lane takes an even share, rounded up.

    Raises CheckpointError for a checkpoint that cannot be loaded, EngineError for an engine that
    is not installed.
    """
    if kind == "openvino" and not _installed("openvino"):
        raise EngineError("The engine 'openvino' is not installed; pip install openvino.")
    if kind == "torch" or (kind == "auto" and (_has_gpu() or not _installed("openvino"))):
        description = describe(source)
        return TorchEngine(
            pixels_to_probabilities(source, description), precision, num_threads, max_batch_size
        ), description
    converted, description = convert(source, cache_dir)
    return OpenVINOEngine(
        converted, precision, num_threads, max_batch_size, max_streams
    ), description


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


class TorchEngine:
    """Eager torch, channels last; on the GPU where there is one."""

    streams = lanes = 1

    def __init__(
        self,
        network: "torch.nn.Module",
        precision: Precision,
        num_threads: int,
        max_batch_size: int,
    ) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self._autocast = precision == "bf16"
        self.share = max_batch_size
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

    in_stream = __call__


class OpenVINOEngine:
    """OpenVINO on the CPU, compiled twice: for one image at a time on all threads, which is the
    fastest for who comes alone, and in streams of few threads each, which together get more done,
    since threads that share an image wait for each other after every layer."""

    name = "openvino"

    def __init__(
        self,
        model: "openvino.Model",
        precision: Precision,
        num_threads: int,
        max_batch_size: int,
        max_streams: int,
    ) -> None:
        import openvino

        asked = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
        core = openvino.Core()

        def compiled(model: openvino.Model, streams: int) -> openvino.CompiledModel:
            settings = {
                # Left alone, OpenVINO computes in bfloat16 wherever the processor can.
                "INFERENCE_PRECISION_HINT": asked[precision],
                "INFERENCE_NUM_THREADS": num_threads,
                # Left alone, it binds threads to cores, those of every process to the same ones:
                # two workers of one thread each would share a core.
                "ENABLE_CPU_PINNING": False,
                "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
                "NUM_STREAMS": streams,
            }
            return core.compile_model(model, "CPU", settings)

        self.streams = min(num_threads, max_streams)
        # Who has one stream where there could be more wants nothing beside its batch.
        self.lanes = LANES * self.streams if max_streams > 1 else 1
        self.share = math.ceil(max_batch_size / self.lanes)
        one = _of_one_image(model)
        whole = compiled(one, 1)
        used = whole.get_property("INFERENCE_PRECISION_HINT")
        self.precision = next((name for name, kind in asked.items() if kind == used), str(used))
        self._whole = whole.create_infer_request()
        parts = whole
        if self.share > 1:
            parts = compiled(model, self.streams)
        elif self.streams > 1:
            parts = compiled(one, self.streams)
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.lanes):
            self._idle.put(parts.create_infer_request())

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([_infer(self._whole, one[np.newaxis]) for one in pixels])

    def in_stream(self, pixels: np.ndarray) -> np.ndarray:
        request = self._idle.get()
        try:
            return _infer(request, pixels)
        finally:
            self._idle.put(request)


def _of_one_image(model: "openvino.Model") -> "openvino.Model":
    """With all sizes known beforehand a call takes 2 to 7 % less: none is worked out again."""
    one = model.clone()
    shape = one.input(0).partial_shape
    shape[0] = 1
    one.reshape(shape)
    return one


def _infer(request: "openvino.InferRequest", pixels: np.ndarray) -> np.ndarray:
    # The outputs are the request's own memory, which its next call writes over.
    return request.infer([pixels], share_inputs=True, share_outputs=True)[0].copy()


def warm_up(engine: Engine, size: tuple[int, int]) -> None:
    """Runs every size of a batch once, in every stream: the first run of a shape compiles kernels
    for it."""
    pixels = np.zeros((engine.share, *size, 3), np.uint8)
    engine(pixels[:1])
    with ThreadPoolExecutor(engine.streams) as threads:
        for n in range(1, engine.share + 1):
            list(threads.map(engine.in_stream, [pixels[:n]] * engine.streams))
