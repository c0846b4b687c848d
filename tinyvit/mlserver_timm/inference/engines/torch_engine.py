"""The forward pass by torch: on a GPU if there is one, else on the CPU."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from mlserver_timm.inference.engines.base import Outputs

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """Computes one batch at a time, channels last."""

    num_streams = num_infer_requests = 1

    def __init__(
        self,
        network: "nn.Module",
        outputs: Collection[str],
        precision: str,
        num_threads: int,
        max_batch_size: int,
    ) -> None:
        """`network` maps uint8 `[N,H,W,3]` to its `outputs`, in this order; `precision` is fp32 or
        bf16."""
        import torch

        torch.set_num_threads(num_threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self._names = list(outputs)
        self.outputs = frozenset(outputs)
        self.images_per_request = max_batch_size
        self.precision = precision
        self.name = f"torch on {self._device.type}"

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """Return the outputs of all images, computed as one batch."""
        import torch

        batch = torch.from_numpy(np.require(pixels, requirements="W"))  # torch wants it writable
        is_bf16 = self.precision == "bf16"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=is_bf16, cache_enabled=False),
        ):
            results = dict(zip(self._names, self._network(batch.to(self._device)), strict=True))
        return {name: results[name].cpu().numpy() for name in outputs}

    infer_throughput = infer_latency
