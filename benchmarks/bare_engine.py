"""Images a second of the engine alone, without a server: one after the other in each of its lanes.

    python bare_engine.py CHECKPOINT PRECISION SECONDS CACHE_DIR

Prints what wrk.lua prints.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

from checkpoint import Source
from engine import Engine, available_cores, create_engine


def main(checkpoint: str, precision: str, seconds: float, cache: str) -> None:
    source = Source(Path(checkpoint), checkpoint)
    engine, description = create_engine(
        "openvino", source, precision, available_cores(), Path(cache), max_batch_size=1
    )
    shape = (1, *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    lanes = range(engine.lanes)
    with ThreadPoolExecutor(engine.lanes) as threads:
        list(threads.map(lambda lane: _times(engine, pixels, 0.5), lanes))
        found = list(threads.map(lambda lane: _times(engine, pixels, seconds), lanes))
    p50, p99 = 1000 * np.percentile(np.concatenate(found), [50, 99])
    result = {
        "requests": sum(len(times) for times in found),
        "seconds": max(sum(times) for times in found),
        "p50_ms": p50,
        "p99_ms": p99,
        "errors": 0,
    }
    print("JSON", json.dumps(result))


def _times(engine: Engine, pixels: np.ndarray, seconds: float) -> list[float]:
    """Seconds of each call of one lane, again and again for so long."""
    times: list[float] = []
    while sum(times) < seconds:
        started = time.perf_counter()
        engine.in_stream(pixels)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:3], float(sys.argv[3]), sys.argv[4])
