"""Every engine computes the scores of timm's network."""

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
from tests.support.timm_reference import SAMPLE, TOLERANCE, make_checkpoint, timm_reference

TASKS = Path("/proc/self/task")


BF16_AGREES = 0.95
"""Minimum share of photograph crops with timm's best label. Measured in torch with the sample's
weights: 70 of 72. OpenVINO computes in fp32 on processors without bf16."""

BF16_GAP = 0.08
"""Maximum difference of a score. Measured in torch: 0.066, and 0.00005 on average."""


def made(
    folder: Path,
    cache_dir: Path,
    kind: Any = "openvino",
    precision: Any = "fp32",
    threads: int = 2,
    batch: int = 4,
    undivided: bool = False,
) -> Engine:
    """Return the engine of a checkpoint."""
    settings = RuntimeSettings(engine=kind, precision=precision, cache_dir=cache_dir)
    return create_engine(Checkpoint(folder, "it"), settings, threads, batch, undivided)[0]


@pytest.fixture(scope="module")
def engines(cache_dir: Path) -> Callable[[str, str], Engine]:
    """Return each engine of the sample for batches of 16, created once."""

    @functools.cache
    def one(kind: str, precision: str) -> Engine:
        return made(SAMPLE, cache_dir, kind, precision, batch=16)

    return one


def probabilities(infer: Callable[..., Any], pixels: np.ndarray) -> np.ndarray:
    return infer(pixels, [PROBABILITIES])[PROBABILITIES]


@pytest.mark.parametrize("kind", ["openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_probabilities_are_timms(engines: Callable[..., Engine], kind: str) -> None:
    """For every batch size, up and down."""
    network = engines(kind, "fp32")
    pixels = crops()[::15][:5]
    expected = timm_reference().of_pixels(pixels)
    assert expected.max() > 0.2, "all alike would prove nothing"
    for n in [*range(1, 6), 3, 1]:
        for infer in (network.infer_latency, network.infer_throughput):
            scores = probabilities(infer, pixels[:n])
            assert scores.dtype == np.float32 and scores.shape == (n, CLASSES)
            np.testing.assert_allclose(scores, expected[:n], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_scores_do_not_depend_on_the_place_in_the_batch(
    engines: Callable[..., Engine], kind: str
) -> None:
    """Answers depend on no other image and do not change with the next batch."""
    infer = engines(kind, "fp32").infer_throughput
    pixels = crops()[:6]
    forwards, backwards = probabilities(infer, pixels), probabilities(infer, pixels[::-1].copy())
    kept = forwards.copy()
    np.testing.assert_allclose(backwards[::-1], forwards, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(forwards, kept)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_concurrent_calls_get_their_own_scores(engines: Callable[..., Engine], kind: str) -> None:
    """Each call gets its own answer."""
    network = engines(kind, "fp32")
    assert (network.num_streams, network.num_infer_requests) == {
        "openvino": (2, 4),
        "torch": (1, 1),
    }[kind]
    pixels = crops()[:16]
    expected = timm_reference().of_pixels(pixels)
    with ThreadPoolExecutor(network.num_infer_requests) as threads:
        scores = list(
            threads.map(
                lambda batch: probabilities(network.infer_throughput, batch),
                np.split(pixels, [1, 4, 6, 10, 12, 13]),
            )
        )
    np.testing.assert_allclose(np.concatenate(scores), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("max_batch_size, share", [(1, 1), (4, 1), (5, 2), (13, 4)])
def test_largest_batch_of_an_infer_request(
    small_checkpoint: Path, cache_dir: Path, max_batch_size: int, share: int
) -> None:
    """The share of `max_batch_size` for each of four; one image has a network of its own."""
    network = made(small_checkpoint, cache_dir, batch=max_batch_size)
    assert (network.num_infer_requests, network.images_per_request) == (4, share)
    pixels = noise(share)
    scores = probabilities(network.infer_throughput, pixels)
    expected = timm_reference(small_checkpoint).of_pixels(pixels)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


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


@pytest.mark.linux
def test_threads_are_bound_to_no_core(small_checkpoint: Path, cache_dir: Path) -> None:
    """OpenVINO would bind the threads of every process to the same cores."""
    network = made(small_checkpoint, cache_dir, threads=available_cores())
    probabilities(network.infer_latency, noise(1))
    probabilities(network.infer_throughput, noise(1))
    may = {len(os.sched_getaffinity(int(thread.name))) for thread in TASKS.iterdir()}
    assert may == {len(os.sched_getaffinity(0))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_bf16_agrees(engines: Callable[..., Engine], kind: str) -> None:
    """The best label of nearly every photograph is timm's, with bf16's preprocessing."""
    description = describe(CHECKPOINT)
    prepare = EvaluationTransform(
        size=description.input_size,
        interpolation=description.interpolation,
        crop_pct=description.crop_pct,
        crop_mode=description.crop_mode,
        fill=(0, 0, 0),
        exact=False,
    )
    exact = np.stack([timm_reference().probabilities(photo) for photo in photographs()[::2]])
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
    """Return whether any score of two engines differs for the same photographs."""
    first, second = (probabilities(each.infer_latency, crops()[:4]) for each in (one, other))
    return bool((first != second).any())


def test_precision_is_the_real_one(engines: Callable[..., Engine]) -> None:
    """It is bf16 only if the processor has it."""
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
    expected = timm_reference(tinyvit).of_pixels(pixels)
    assert expected.max() > 0.2, "all alike would prove nothing"
    for scores in (
        probabilities(engine.infer_throughput, pixels),
        np.concatenate([probabilities(engine.infer_latency, one[np.newaxis]) for one in pixels]),
    ):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def tinyvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With seeded weights."""
    folder = tmp_path_factory.mktemp("tinyvit") / "tinyvit"
    return make_checkpoint(folder, "tiny_vit_5m_224", classes=21841)
