"""Images a second of the engine alone, without a server.

    python bare_engine.py CHECKPOINT PRECISION BATCH_SIZE SECONDS CACHE_DIR

Prints what wrk.lua prints.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

from checkpoint import Source
from engine import available_cores, create_engine


def main(checkpoint: str, precision: str, batch_size: int, seconds: float, cache: str) -> None:
    source = Source(Path(checkpoint), checkpoint)
    engine, description = create_engine(
        "openvino", source, precision, available_cores(), Path(cache)
    )
    shape = (batch_size, *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for _ in range(5):
        engine(pixels)
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        before = time.perf_counter()
        engine(pixels)
        times.append(time.perf_counter() - before)
    p50, p99 = 1000 * np.percentile(times, [50, 99])
    result = {
        "requests": batch_size * len(times),
        "seconds": time.perf_counter() - started,
        "p50_ms": p50,
        "p99_ms": p99,
        "errors": 0,
    }
    print("JSON", json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
