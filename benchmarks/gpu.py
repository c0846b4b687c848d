"""The torch engine on a GPU, or on the CPU where there is none: eager and compiled, batches of 1 to
256, checked against fp32; and the server over HTTP with it.

    python benchmarks/gpu.py [--network sample] [--batches 1,8,64] [--seconds 3] [--no-server]

On a GPU compiled networks run as they are served: as CUDA graphs, two lanes at once. Prints tables.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compared import RAW, ours
from inputs import CACHE, SAMPLE, TINYVIT, Network, write_bodies
from measurement import BenchmarkError, check_wrk
from servers import ServerFailed, check, die_tidily, running

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

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

NETWORKS = {"sample": SAMPLE, "full": TINYVIT}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PRECISIONS, MODES = ("fp32", "bf16"), ("eager", "compiled")
CLIENTS = (1, 8, 64)
SERVER = {"TINYVIT_ENGINE": "torch", "TINYVIT_MAX_QUEUE": "256"}
PROBABILITIES = 0
"""The network's first output."""


@dataclass(frozen=True)
class Result:
    """What one way to run the network takes for one size of batch, and how right it is."""

    precision: str
    mode: str
    batch: int
    images_per_second: float
    p50_ms: float
    same_best: float
    """Share of images whose best label is that of fp32, eager."""
    worst: float
    """Largest difference of a probability."""

    def line(self) -> str:
        return (
            f"| {self.precision} | {self.mode} | {self.batch} | {self.images_per_second:.1f} "
            f"| {self.p50_ms:.2f} | {self.same_best:.1%} | {self.worst:.5f} |"
        )


class Engines:
    """The network of a checkpoint in every way that it can be run here."""

    def __init__(self, checkpoint: Path, largest: int) -> None:
        source = Checkpoint(checkpoint, str(checkpoint))
        description = describe(source)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network_of(source, description).to(
            self._device, memory_format=torch.channels_last
        )
        self.size = description.input_size
        self._largest = largest

    def lanes(self, precision: str, mode: str) -> list[Lane]:
        """Those that work side by side."""
        network: Any = compiled(self._network) if mode == "compiled" else self._network
        if precision == "bf16":
            network = with_autocast(network, self._device.type)
        if mode == "compiled" and self._device.type == "cuda":
            return [CudaGraphLane(network, self._largest, self.size) for _ in range(GPU_LANES)]
        return [EagerLane(network, self._device)]


def measure(
    lanes: list[Lane], pixels: np.ndarray, seconds: float
) -> tuple[float, float, np.ndarray]:
    """Images a second of all lanes, the median call in milliseconds, and the probabilities."""
    answer = lanes[0](pixels, [PROBABILITIES])[0]

    def calls(lane: Lane) -> list[float]:
        times: list[float] = []
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            lane(pixels, [PROBABILITIES])
            times.append(time.perf_counter() - started)
        return times

    started = time.perf_counter()
    with ThreadPoolExecutor(len(lanes)) as threads:
        times = [one for found in threads.map(calls, lanes) for one in found]
    passed = time.perf_counter() - started
    return len(pixels) * len(times) / passed, 1000 * float(np.median(times)), answer


def engine_table(checkpoint: Path, batches: list[int], seconds: float) -> list[Result]:
    """All precisions, modes and batches."""
    engines = Engines(checkpoint, max(batches))
    shape = (max(batches), *engines.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    exact = engines.lanes("fp32", "eager")[0]
    expected = np.concatenate([exact(one[None], [PROBABILITIES])[0] for one in pixels])
    results = []
    for precision, mode in product(PRECISIONS, MODES):
        lanes = engines.lanes(precision, mode)
        for batch in batches:
            rate, p50_ms, found = measure(lanes, pixels[:batch], seconds)
            same = (found.argmax(1) == expected[:batch].argmax(1)).mean()
            worst = np.abs(found - expected[:batch]).max()
            results.append(Result(precision, mode, batch, rate, p50_ms, float(same), float(worst)))
            print(results[-1].line(), flush=True)
    return results


def server_table(network: Network, seconds: float) -> list[str]:
    """The server with the torch engine, a raw JPEG from so many clients at once."""
    lines = ["| precision | clients | requests/s | p50 ms | p99 ms |", "|---|--:|--:|--:|--:|"]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        work = Path(folder)
        write_bodies(work)
        for precision in PRECISIONS:
            server = ours(precision, (RAW,), variables=SERVER)
            with running(server, network.checkpoint(), work / "torch", work) as (process, _):
                RAW.measure(process, work, 8, 1)
                check(process, RAW, work)
                for clients in CLIENTS:
                    found = RAW.measure(process, work, clients, seconds)
                    lines.append(
                        f"| {precision} | {clients} | {found.rate:.1f} | {found.p50_ms:.1f} "
                        f"| {found.p99_ms:.1f} |"
                    )
    return lines


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="full")
    parser.add_argument("--batches", type=numbers, default=list(BATCHES), metavar="N,N,...")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--no-server", action="store_true", help="the engine only")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    die_tidily()
    network = NETWORKS[options.network]
    checkpoint = network.checkpoint()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, the CPU instead"
    print(f"{network.description}; {gpu}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| precision | mode | batch | images/s | p50 ms | same best label | worst difference |")
    print("|---|---|--:|--:|--:|--:|--:|")
    engine_table(checkpoint, options.batches, options.seconds)
    if not options.no_server:
        check_wrk()
        print("\n" + "\n".join(server_table(network, options.seconds)))


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
