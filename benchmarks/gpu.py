"""The torch engine on a GPU, or on the CPU without one: eager and compiled, batches of 1 to 256.

    python -m benchmarks.gpu [--network sample] [--batches 1,8,64] [--seconds 3]

Compares every result with eager fp32. On a GPU, compiled networks run as they are served: as CUDA
graphs in two lanes.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bare_engine import repeat
from benchmarks.networks import SAMPLE, TINYVIT
from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe
from mlserver_timm.checkpoints.network import network_of
from mlserver_timm.inference.engines.torch_engine import GPU_LANES
from mlserver_timm.inference.engines.torch_lanes import (
    CudaGraphLane,
    EagerLane,
    Lane,
    compiled,
    with_autocast,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODES = ("eager", "compiled")
PROBABILITIES = 0
"""Index of the network's first output."""
HEAD = (
    "| precision | mode | batch | images/s | p50 ms | same best label | largest difference |\n"
    "|---|---|--:|--:|--:|--:|--:|"
)


def lanes(
    network: Any, precision: str, mode: str, images: int, size: tuple[int, int]
) -> list[Lane]:
    """Return the lanes that work side by side."""
    device = next(network.parameters()).device
    program = compiled(network) if mode == "compiled" else network
    if precision == "bf16":
        program = with_autocast(program, device.type)
    if mode == "compiled" and device.type == "cuda":
        return [CudaGraphLane(program, images, size) for _ in range(GPU_LANES)]
    return [EagerLane(program, device)]


def rows(checkpoint: Path, batches: list[int], seconds: float) -> Iterator[str]:
    """Yield a table line for each precision, mode and batch size."""
    source = Checkpoint(checkpoint, str(checkpoint))
    description = describe(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network_of(source, description).to(device, memory_format=torch.channels_last)
    shape = (max(batches), *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    exact = EagerLane(network, device)
    expected = np.concatenate([exact(image[None], [PROBABILITIES])[0] for image in pixels])
    for precision, mode in product(("fp32", "bf16"), MODES):
        parallel = lanes(network, precision, mode, max(batches), description.input_size)
        for batch in batches:
            images = pixels[:batch]
            scores = parallel[0](images, [PROBABILITIES])[0]
            started = time.perf_counter()
            with ThreadPoolExecutor(len(parallel)) as threads:
                calls = [partial(lane, images, [PROBABILITIES]) for lane in parallel]
                times = sum(threads.map(repeat, calls, [seconds] * len(calls)), [])
            rate = batch * len(times) / (time.perf_counter() - started)
            same = (scores.argmax(1) == expected[:batch].argmax(1)).mean()
            yield (
                f"| {precision} | {mode} | {batch} | {rate:.1f} | {1000 * np.median(times):.2f} "
                f"| {same:.1%} | {np.abs(scores - expected[:batch]).max():.5f} |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=("sample", "full"), default="full")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), metavar="N,N,...")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    options = parser.parse_args()
    network = SAMPLE if options.network == "sample" else TINYVIT
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{network.description}; {gpu}, torch {torch.__version__}\n\n{HEAD}")
    batches = [int(number) for number in options.batches.split(",")]
    for row in rows(network.checkpoint(), batches, options.seconds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
