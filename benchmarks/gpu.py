"""The torch engine on a GPU, or on the CPU without one: batches of 1 to 256, fp32 and bf16.

    python -m benchmarks.gpu [--network sample] [--batches 1,8,64] [--seconds 3]

Compares every result with fp32. It has never run on a GPU.
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.bare_engine import repeat
from benchmarks.networks import SAMPLE, TINYVIT
from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe
from mlserver_timm.checkpoints.network import PROBABILITIES, network_of
from mlserver_timm.inference.engines.torch_engine import TorchEngine

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HEAD = (
    "| precision | batch | images/s | p50 ms | same best label | largest difference |\n"
    "|---|--:|--:|--:|--:|--:|"
)


def rows(checkpoint: Path, batches: list[int], seconds: float) -> Iterator[str]:
    """Yield a table line for each precision and batch size."""
    source = Checkpoint(checkpoint, str(checkpoint))
    description = describe(source)
    network = network_of(source, description)
    shape = (max(batches), *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def engine(precision: str) -> TorchEngine:
        threads = os.cpu_count() or 1
        return TorchEngine(network, network.outputs, precision, threads, max(batches))

    exact = engine("fp32")
    expected = np.concatenate([_scores(exact, image[np.newaxis]) for image in pixels])
    for precision in ("fp32", "bf16"):
        measured = engine(precision)
        for batch in batches:
            images = pixels[:batch]
            scores = _scores(measured, images)
            started = time.perf_counter()
            times = repeat(partial(_scores, measured, images), seconds)
            rate = batch * len(times) / (time.perf_counter() - started)
            same = (scores.argmax(1) == expected[:batch].argmax(1)).mean()
            yield (
                f"| {precision} | {batch} | {rate:.1f} | {1000 * np.median(times):.2f} "
                f"| {same:.1%} | {np.abs(scores - expected[:batch]).max():.5f} |"
            )


def _scores(engine: TorchEngine, pixels: np.ndarray) -> np.ndarray:
    return engine.infer_latency(pixels, [PROBABILITIES])[PROBABILITIES]


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
