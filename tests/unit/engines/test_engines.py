"""Every engine computes what timm's network does."""

import functools
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from PIL import Image

from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.images.decode import open_file
from mlserver_timm.images.transforms import EvaluationTransform
from mlserver_timm.inference.engines.base import Engine
from mlserver_timm.inference.engines.cpu import available_cores
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings
from tests.support.clients import CLASSES, encoded
from tests.support.crops import CHECKPOINT, crops, photographs
from tests.support.timm_reference import SAMPLE, TOLERANCE, make_checkpoint, truth

TASKS = Path("/proc/self/task")


BF16_AGREES = 0.95
"""Of the crops of real photographs, the part whose best label is timm's at the least. Measured in
torch on the sample's weights: 70 of 72. OpenVINO's is told by processors with bf16 alone; without,
it computes in fp32."""

BF16_GAP = 0.08
"""Of a score, at the most. Measured in torch: 0.066, and 0.00005 in the mean."""


def made(
    folder: Path,
    cache_dir: Path,
    kind: Any = "openvino",
    precision: Any = "fp32",
    threads: int = 2,
    batch: int = 4,
    undivided: bool = False,
) -> Engine:
    """The engine of a checkpoint."""
    settings = RuntimeSettings(engine=kind, precision=precision, cache_dir=cache_dir)
    return create_engine(Checkpoint(folder, "it"), settings, threads, batch, undivided)[0]


@pytest.fixture(scope="module")
def engines(cache_dir: Path) -> Callable[[str, str], Engine]:
    """Each engine of the sample, made once, for batches of 16."""

    @functools.cache
    def one(kind: str, precision: str) -> Engine:
        return made(SAMPLE, cache_dir, kind, precision, batch=16)

    return one


def probabilities(infer: Callable[..., Any], pixels: np.ndarray) -> np.ndarray:
    return infer(pixels, [PROBABILITIES])[PROBABILITIES]


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_probabilities_are_timms(engines: Callable[..., Engine], kind: str) -> None:
    """For every size of a batch, up and down."""
    network = engines(kind, "fp32")
    pixels = crops()[::15][:5]
    wanted = truth().of_pixels(pixels)
    assert wanted.max() > 0.2, "all alike would prove nothing"
    for n in [*range(1, 6), 3, 1]:
        for infer in (network.infer_latency, network.infer_throughput):
            told = probabilities(infer, pixels[:n])
            assert told.dtype == np.float32 and told.shape == (n, CLASSES)
            np.testing.assert_allclose(told, wanted[:n], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_place_in_the_batch(engines: Callable[..., Engine], kind: str) -> None:
    """Answers neither depend on neighbours nor change when the next batch is computed."""
    infer = engines(kind, "fp32").infer_throughput
    pixels = crops()[:6]
    forwards, backwards = probabilities(infer, pixels), probabilities(infer, pixels[::-1].copy())
    kept = forwards.copy()
    np.testing.assert_allclose(backwards[::-1], forwards, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(forwards, kept)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_streams_at_once(engines: Callable[..., Engine], kind: str) -> None:
    """Each call gets its own answer, and it stays what it was."""
    network = engines(kind, "fp32")
    assert (network.num_streams, network.num_infer_requests) == {
        "openvino": (2, 4),
        "torch": (1, 1),
    }[kind]
    pixels = crops()[:16]
    wanted = truth().of_pixels(pixels)
    with ThreadPoolExecutor(network.num_infer_requests) as threads:
        told = list(
            threads.map(
                lambda batch: probabilities(network.infer_throughput, batch),
                np.split(pixels, [1, 4, 6, 10, 12, 13]),
            )
        )
    np.testing.assert_allclose(np.concatenate(told), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("most, share", [(1, 1), (4, 1), (5, 2), (13, 4)])
def test_largest_batch_of_an_infer_request(
    small_checkpoint: Path, cache_dir: Path, most: int, share: int
) -> None:
    """As many images as `max_batch_size` gives each of the four; one image being a network of its
    own."""
    network = made(small_checkpoint, cache_dir, batch=most)
    assert (network.num_infer_requests, network.images_per_request) == (4, share)
    pixels = noise(share)
    told = probabilities(network.infer_throughput, pixels)
    wanted = truth(small_checkpoint).of_pixels(pixels)
    np.testing.assert_allclose(told, wanted, rtol=0, atol=TOLERANCE)


def test_one_thread_has_one_network(small_checkpoint: Path, cache_dir: Path) -> None:
    """For one image at a time, whatever the batch."""
    network = made(small_checkpoint, cache_dir, threads=1, batch=16)
    assert (network.num_streams, network.images_per_request) == (1, 1)
    pixels = noise(1)
    wanted = truth(small_checkpoint).of_pixels(pixels)
    for infer in (network.infer_latency, network.infer_throughput):
        np.testing.assert_allclose(probabilities(infer, pixels), wanted, rtol=0, atol=TOLERANCE)


def noise(count: int) -> np.ndarray:
    """Images of the small checkpoint's size."""
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "undivided, threads, streams, infer_requests",
    [(False, 1, 1, 2), (False, 3, 3, 6), (False, 16, 4, 8), (True, 2, 1, 1)],
)
def test_number_of_streams(
    small_checkpoint: Path,
    cache_dir: Path,
    undivided: bool,
    threads: int,
    streams: int,
    infer_requests: int,
) -> None:
    network = made(small_checkpoint, cache_dir, threads=threads, undivided=undivided)
    assert (network.num_streams, network.num_infer_requests) == (streams, infer_requests)


def test_threads_are_bound_to_no_core(small_checkpoint: Path, cache_dir: Path) -> None:
    """OpenVINO would bind those of every process to the same ones."""
    network = made(small_checkpoint, cache_dir, threads=available_cores())
    probabilities(network.infer_latency, noise(1))
    probabilities(network.infer_throughput, noise(1))
    may = {len(os.sched_getaffinity(int(thread.name))) for thread in TASKS.iterdir()}
    assert may == {len(os.sched_getaffinity(0))}


@pytest.mark.parametrize("kind", ["openvino", "torch"])
@pytest.mark.parametrize("value", [0, 255])
def test_flat_pictures(engines: Callable[..., Engine], kind: str, value: int) -> None:
    pixels = np.full((1, 224, 224, 3), value, np.uint8)
    told = probabilities(engines(kind, "fp32").infer_latency, pixels)
    np.testing.assert_allclose(told, truth().of_pixels(pixels), rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_bf16_agrees(engines: Callable[..., Engine], kind: str) -> None:
    """On the best label of nearly every photograph, prepared as bf16 allows."""
    description = describe(CHECKPOINT)
    prepare = EvaluationTransform(
        size=description.input_size,
        interpolation=description.interpolation,
        crop_pct=description.crop_pct,
        crop_mode=description.crop_mode,
        fill=(0, 0, 0),
        exact=False,
    )
    exact = np.stack([truth().probabilities(photo) for photo in photographs()[::2]])
    pixels = np.stack([prepare(opened(photo)) for photo in photographs()[::2]])
    infer = engines(kind, "bf16").infer_throughput
    rough = np.concatenate([probabilities(infer, part) for part in np.split(pixels, 18)])
    np.testing.assert_allclose(rough.sum(axis=1), 1, atol=1e-2)
    assert (rough.argmax(axis=1) == exact.argmax(axis=1)).mean() >= BF16_AGREES
    assert np.abs(rough - exact).max() <= BF16_GAP
    assert np.abs(rough - exact).mean() <= 1e-3


def opened(photo: Image.Image) -> Image.Image:
    """Return the image as it comes in a lossless file."""
    return open_file(io.BytesIO(encoded(photo, "PNG")))


def differ(one: Engine, other: Engine) -> bool:
    """Whether two engines tell anything differently of the same photographs."""
    first, second = (probabilities(each.infer_latency, crops()[:4]) for each in (one, other))
    return bool((first != second).any())


def test_precision_is_told_truly(engines: Callable[..., Engine]) -> None:
    """bf16 where the processor has it, and not where it only was asked for."""
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    exact, rough = engines("openvino", "fp32"), engines("openvino", "bf16")
    assert exact.precision == "fp32"
    assert rough.precision == ("bf16" if can else "fp32")
    assert (exact.name, rough.name) == ("openvino", "openvino")
    differs = differ(exact, rough)
    assert differs == (rough.precision != exact.precision)


@pytest.mark.slow
def test_precision_of_torch(engines: Callable[..., Engine]) -> None:
    exact, rough = engines("torch", "fp32"), engines("torch", "bf16")
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.name.startswith("torch on ")
    assert differ(exact, rough)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_tinyvit_at_full_size(tinyvit: Path, cache_dir: Path, kind: Any) -> None:
    """TinyViT-5M with all classes of ImageNet-22k, in batches of one and of three."""
    settings = RuntimeSettings(engine=kind, cache_dir=cache_dir)
    engine, description = create_engine(Checkpoint(tinyvit, "it"), settings, 2, 12)
    assert description.architecture == "tiny_vit_5m_224"
    assert description.input_size == (224, 224) and len(description.labels) == 21841
    pixels = crops()[::48]
    wanted = truth(tinyvit).of_pixels(pixels)
    assert wanted.max() > 0.2, "all alike would prove nothing"
    for told in (
        probabilities(engine.infer_throughput, pixels),
        np.concatenate([probabilities(engine.infer_latency, one[np.newaxis]) for one in pixels]),
    ):
        np.testing.assert_allclose(told, wanted, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def tinyvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With seeded weights."""
    folder = tmp_path_factory.mktemp("tinyvit") / "tinyvit"
    return make_checkpoint(folder, "tiny_vit_5m_224", classes=21841)
