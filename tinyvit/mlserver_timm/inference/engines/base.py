"""What a compiled network can do, whichever library computes it."""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

Outputs = Mapping[str, np.ndarray]
"""Those of a network's outputs that were asked for, by name, row for row with the images."""


class Engine(Protocol):
    """A compiled network. The caller sees to it that at most one call of `infer_latency` or
    `num_infer_requests` calls of `infer_throughput` are made at once."""

    name: str
    """As the metadata has it: `openvino`, or `torch on cpu`."""
    precision: str
    """What is really computed in, which may differ from what was asked for."""
    outputs: frozenset[str]
    """Which outputs the network has."""
    num_streams: int
    """How many calls of `infer_throughput` are computed at once: those that came first."""
    num_infer_requests: int
    """How many calls may be made at once; those beyond the streams wait inside, ready."""
    images_per_request: int
    """The most images that one call of `infer_throughput` may hold."""

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """The outputs for uint8 RGB pixels `[N,H,W,3]`, as early as possible, on all threads."""
        ...

    def infer_throughput(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """The same on one stream's share of the threads."""
        ...
