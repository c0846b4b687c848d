"""How torch runs a network: eagerly on any device, or compiled and replayed on a GPU."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, device, nn

Network = Callable[["Tensor"], "Sequence[Tensor]"]
"""From uint8 `[N,H,W,3]` to the outputs."""

TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
"""Largest difference of a probability that a compiled network may have from the eager one."""

logger = logging.getLogger("mlserver.tinyvit")


class Lane(Protocol):
    """Takes one batch at a time; several lanes work side by side."""

    def __call__(self, pixels: np.ndarray, wanted: Iterable[int]) -> list[np.ndarray]:
        """The outputs with these indices for uint8 `[N,H,W,3]`."""
        ...


class EagerLane:
    """One call of the network after the other, on the device where its weights are."""

    def __init__(self, network: Network, device: "device") -> None:
        self._network = network
        self._device = device

    def __call__(self, pixels: np.ndarray, wanted: Iterable[int]) -> list[np.ndarray]:
        """The outputs with these indices for uint8 `[N,H,W,3]`."""
        import torch

        pixels = np.require(pixels, requirements="W")  # torch has no tensors that are only read
        with torch.inference_mode():
            outputs = self._network(torch.from_numpy(pixels).to(self._device))
        return [outputs[i].cpu().numpy() for i in wanted]


@dataclass(frozen=True)
class _Graph:
    """A CUDA graph for so many images, and where its outputs are, on the GPU and in host memory."""

    images: int
    replay: Callable[[], None]
    on_device: "Sequence[Tensor]"
    on_host: "Sequence[Tensor]"


class CudaGraphLane:
    """A CUDA stream with pinned buffers of its own and a CUDA graph for each power of two.

    A batch takes the next larger graph; what is left over is computed for nothing. While one lane
    computes, another copies.
    """

    def __init__(self, network: Network, images: int, size: tuple[int, int]) -> None:
        """Captures the graphs up to so many images of this height and width."""
        import torch

        self._stream = torch.cuda.Stream()
        largest = 1 << (images - 1).bit_length()
        self._host = torch.zeros((largest, *size, 3), dtype=torch.uint8).pin_memory()
        self._device = self._host.cuda()
        self._graphs = [self._capture(network, 1 << power) for power in range(largest.bit_length())]

    def _capture(self, network: Network, images: int) -> _Graph:
        import torch

        pixels = self._device[:images]
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(3):  # libraries choose their kernels, which a capture must not contain
                network(pixels)
            self._stream.synchronize()
            with torch.cuda.graph(graph, stream=self._stream):
                on_device = network(pixels)
        on_host = [torch.empty(out.shape, dtype=out.dtype).pin_memory() for out in on_device]
        return _Graph(images, graph.replay, on_device, on_host)

    def __call__(self, pixels: np.ndarray, wanted: Iterable[int]) -> list[np.ndarray]:
        """The outputs with these indices for uint8 `[N,H,W,3]`."""
        import torch

        n, indices = len(pixels), list(wanted)
        graph = next(graph for graph in self._graphs if graph.images >= n)
        np.copyto(self._host[:n].numpy(), pixels)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._device[:n].copy_(self._host[:n], non_blocking=True)
            graph.replay()
            for i in indices:
                graph.on_host[i][:n].copy_(graph.on_device[i][:n], non_blocking=True)
        self._stream.synchronize()
        return [graph.on_host[i][:n].numpy().copy() for i in indices]


def compiled(network: "nn.Module") -> Network:
    """The network by torch.compile: one program for a single image, one for batches of any size."""
    import torch

    program = torch.compile(network)

    def run(pixels: "Tensor") -> "Sequence[Tensor]":
        if len(pixels) > 1:
            torch._dynamo.mark_dynamic(pixels, 0)
        return program(pixels)

    return run


def with_autocast(network: Network, kind: str) -> Network:
    """The network computing in bfloat16 where that is safe, on a `kind` of device."""
    import torch

    def run(pixels: "Tensor") -> "Sequence[Tensor]":
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            return network(pixels)

    return run


def fast_lanes(
    network: Network, program: Network, count: int, images: int, size: tuple[int, int], bound: float
) -> list[CudaGraphLane]:
    """Lanes that replay `program`; none, and a warning, where they cannot be had or answer
    otherwise than the eager `network`, by more than `bound` in any probability."""
    import torch

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, *size, 3), np.uint8)
    try:
        lanes = [CudaGraphLane(program, images, size) for _ in range(count)]
        expected = EagerLane(network, torch.device("cuda"))(pixels, [0])[0]
        worst = max(float(np.abs(lane(pixels, [0])[0] - expected).max()) for lane in lanes)
    except Exception as error:  # a compiler, a driver or a kernel: each raises its own
        logger.warning("The network runs eagerly, for it could not be compiled: %s", error)
        return []
    if not worst <= bound:
        logger.warning("The network runs eagerly, for compiled its scores are off by %.3f.", worst)
        return []
    return lanes
