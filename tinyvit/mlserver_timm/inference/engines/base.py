"""The interface of the engines: a compiled network, whichever library computes it."""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

Outputs = Mapping[str, np.ndarray]
"""The requested outputs of a network, by name; row i belongs to image i."""


class Engine(Protocol):
    """A compiled network.

    At any time the caller makes at most one call of `infer_latency`, or at most
    `num_infer_requests` calls of `infer_throughput`.
    """

    name: str
    """As in the metadata: `openvino`, or `torch on cpu`."""
    precision: str
    """The precision in use; it may differ from the setting."""
    outputs: frozenset[str]
    """Names of the network's outputs."""
    num_streams: int
    """Maximum number of calls of `infer_throughput` that are computed at the same time."""
    num_infer_requests: int
    """Maximum number of calls at the same time; calls beyond the streams wait in the engine."""
    images_per_request: int
    """Maximum number of images in one call of `infer_throughput`."""

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """Return the outputs for uint8 RGB pixels `[N,H,W,3]`, computed on all threads."""
        ...

    def infer_throughput(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """Return the same, computed on one stream's share of the threads."""
        ...
