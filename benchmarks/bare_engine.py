"""Images a second of the engine alone, without a server: one after the other in each of its infer
requests; given a picture, with its decoding and resizing on the same threads.

    python bare_engine.py CHECKPOINT PRECISION SECONDS CACHE_DIR [PICTURE]

Prints what wrk.lua prints.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

from mlserver_timm.checkpoints.checkpoint import Checkpoint, Description
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.images.decode import open_file
from mlserver_timm.images.transforms import EvaluationTransform
from mlserver_timm.inference.engines.cpu import available_cores
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings

OUTPUTS = frozenset({PROBABILITIES})


def main(checkpoint: str, precision: str, seconds: str, cache: str, picture: str = "") -> None:
    settings = RuntimeSettings(engine="openvino", precision=precision, cache_dir=Path(cache))
    source = Checkpoint(Path(checkpoint), checkpoint)
    engine, description = create_engine(source, settings, available_cores(), max_batch_size=1)
    pixels = _picture(Path(picture), description) if picture else _noise(description)

    def call() -> None:
        engine.infer_throughput(pixels(), OUTPUTS)

    requests = range(engine.num_infer_requests)
    with ThreadPoolExecutor(len(requests)) as threads:
        list(threads.map(lambda _: _times(call, 0.5), requests))
        found = list(threads.map(lambda _: _times(call, float(seconds)), requests))
    p50, p99 = 1000 * np.percentile(np.concatenate(found), [50, 99])
    result = {
        "requests": sum(len(times) for times in found),
        "seconds": max(sum(times) for times in found),
        "p50_ms": p50,
        "p99_ms": p99,
        "errors": 0,
    }
    print("JSON", json.dumps(result))


def _noise(description: Description) -> Callable[[], np.ndarray]:
    shape = (1, *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: pixels


def _picture(path: Path, description: Description) -> Callable[[], np.ndarray]:
    transform = EvaluationTransform(
        size=description.input_size,
        interpolation=description.interpolation,
        crop_pct=description.crop_pct,
        crop_mode=description.crop_mode,
        fill=(0, 0, 0),
    )
    file = path.read_bytes()
    return lambda: transform(open_file(io.BytesIO(file)))[np.newaxis]


def _times(call: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each call, one after the other for so long."""
    times: list[float] = []
    while sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
