"""The forward pass by torch, on a GPU where there is one."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from .base import Outputs

if TYPE_CHECKING:
    import torch


class TorchEngine:
    """Eager torch, channels last; on the GPU where there is one."""

    num_streams = num_infer_requests = 1

    def __init__(
        self,
        network: "torch.nn.Module",
        outputs: Collection[str],
        precision: str,
        num_threads: int,
        max_batch_size: int,
    ) -> None:
        """`network` maps uint8 `[N,H,W,3]` to its `outputs`, in this order; `precision` is fp32 or
        bf16."""
        import torch

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self._autocast = precision == "bf16"
        self._names = tuple(outputs)
        self.outputs = frozenset(outputs)
        self.images_per_request = max_batch_size
        self.name = f"torch on {self._device.type}"
        self.precision = precision

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """All images at once."""
        torch = self._torch
        batch = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
        ):
            results = dict(zip(self._names, self._network(batch), strict=True))
        return {name: results[name].cpu().numpy() for name in outputs}

    infer_throughput = infer_latency
