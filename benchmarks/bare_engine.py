"""The engine without a server: images one after the other in each of its infer requests.

    python -m benchmarks.bare_engine CHECKPOINT PRECISION SECONDS CACHE_DIR [IMAGE]

With an image, the same threads also decode and resize it.
"""

import io
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.load import report
from mlserver_timm.checkpoints.checkpoint import Checkpoint, Description
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.images.decode import open_file
from mlserver_timm.images.transforms import EvaluationTransform
from mlserver_timm.inference.engines.cpu import available_cores
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings

OUTPUTS = frozenset({PROBABILITIES})


def main(checkpoint: str, precision: str, seconds: str, cache: str, image: str = "") -> None:
    """Run the engine's infer requests side by side."""
    settings = RuntimeSettings(engine="openvino", precision=precision, cache_dir=Path(cache))
    source = Checkpoint(Path(checkpoint), checkpoint)
    engine, description = create_engine(source, settings, available_cores(), max_batch_size=1)
    pixels = _image(Path(image), description) if image else _noise(description)

    def call() -> None:
        engine.infer_throughput(pixels(), OUTPUTS)

    requests = range(engine.num_infer_requests)
    with ThreadPoolExecutor(len(requests)) as threads:
        list(threads.map(lambda _: repeat(call, 0.5), requests))
        latencies = list(threads.map(lambda _: repeat(call, float(seconds)), requests))
    report(sum(latencies, []), max(map(sum, latencies)))


def _noise(description: Description) -> Callable[[], np.ndarray]:
    shape = (1, *description.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: pixels


def _image(path: Path, description: Description) -> Callable[[], np.ndarray]:
    transform = EvaluationTransform(
        size=description.input_size,
        interpolation=description.interpolation,
        crop_pct=description.crop_pct,
        crop_mode=description.crop_mode,
        fill=(0, 0, 0),
    )
    file = path.read_bytes()
    return lambda: transform(open_file(io.BytesIO(file)))[np.newaxis]


def repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """Repeat a call for `seconds`, once at least; return the duration of each."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
