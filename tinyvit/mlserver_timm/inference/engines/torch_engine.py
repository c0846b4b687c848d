"""The forward pass by torch, on a GPU where there is one."""

from collections.abc import Collection
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mlserver_timm.inference.engines.base import Outputs
from mlserver_timm.inference.engines.torch_lanes import (
    TOLERANCE,
    EagerLane,
    Lane,
    compiled,
    fast_lanes,
    with_autocast,
)

if TYPE_CHECKING:
    from torch import nn

GPU_LANES = 2
"""While the GPU computes the batch of one, the other's is copied."""


class TorchEngine:
    """Channels last: on a GPU compiled and replayed as CUDA graphs in two lanes, else eager."""

    num_streams = 1

    def __init__(
        self,
        network: "nn.Module",
        outputs: Collection[str],
        precision: str,
        num_threads: int,
        max_batch_size: int,
        input_size: tuple[int, int],
    ) -> None:
        """`network` maps uint8 `[N,H,W,3]` to its `outputs`, in this order; `precision` is fp32 or
        bf16."""
        import torch

        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = network.to(device, memory_format=torch.channels_last)
        self._indices = {name: i for i, name in enumerate(outputs)}
        self.outputs = frozenset(outputs)
        self.images_per_request = max_batch_size
        self.precision = precision
        lanes = _lanes(network, device.type, precision, max_batch_size, input_size)
        self.num_infer_requests = len(lanes)
        self.name = f"torch on {device.type}"
        self._idle: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._idle.put(lane)

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """All images at once."""
        names = list(outputs)
        lane = self._idle.get()
        try:
            rows = lane(pixels, [self._indices[name] for name in names])
        finally:
            self._idle.put(lane)
        return dict(zip(names, rows, strict=True))

    infer_throughput = infer_latency


def _lanes(
    network: "nn.Module", kind: str, precision: str, images: int, size: tuple[int, int]
) -> list[Lane]:
    import torch

    eager = with_autocast(network, kind) if precision == "bf16" else network
    if kind == "cuda":
        program = compiled(network)
        program = with_autocast(program, kind) if precision == "bf16" else program
        fast = fast_lanes(eager, program, GPU_LANES, images, size, TOLERANCE[precision])
        if fast:
            return list(fast)
    return [EagerLane(eager, torch.device(kind))]
