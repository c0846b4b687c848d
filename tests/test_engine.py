"""The network computes what timm's does, in every engine, from every state of the cache."""

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conversion
import engine
import mending
import numpy as np
import openvino
import pytest
from checkpoint import CheckpointError, Source, describe
from conversion import Converted, convert
from engine import Engine, EngineError, available_cores, create_engine, warm_up
from images import Preprocessing
from mlserver.parallel.worker import Worker
from PIL import Image
from safetensors.numpy import load_file, save_file

from clients import COFFEE
from conftest import ROOT
from truth import SAMPLE, TOLERANCE, make_checkpoint, truth

CAT = COFFEE.with_name("cat.jpg")
SOURCE = Source(SAMPLE, "sample")
TASKS = Path("/proc/self/task")
BF16_AGREES = 0.95
"""Of the crops of real photographs, the part whose best label is timm's at the least. Measured: 142
of 144 in OpenVINO, 143 in torch; those that differ are draws, and no score is off by over 0.013."""


@functools.cache
def photographs() -> list[Image.Image]:
    """Squares of several sizes and places of both photographs."""
    found = []
    for path in (CAT, COFFEE):
        photo = Image.open(path).convert("RGB")
        for side in (120, 180, 240, 300):
            for left in np.linspace(0, photo.width - side, 6).astype(int):
                for top in np.linspace(0, photo.height - side, 3).astype(int):
                    found.append(photo.crop((left, top, left + side, top + side)))
    return found


@functools.cache
def crops() -> np.ndarray:
    """The photographs in the network's size, `[N,64,64,3]`."""
    size, bicubic = (64, 64), Image.Resampling.BICUBIC
    return np.stack([np.asarray(photo.resize(size, bicubic)) for photo in photographs()])


def expected(pixels: np.ndarray) -> np.ndarray:
    """timm's probabilities."""
    return np.stack([truth().probabilities(Image.fromarray(one)) for one in pixels])


@pytest.fixture(scope="session")
def engines(cache_dir: Path) -> Callable[[str, str], Engine]:
    """Each engine of the sample, made once."""

    @functools.cache
    def one(kind: Any, precision: Any) -> Engine:
        return create_engine(kind, SOURCE, precision, 2, cache_dir, 24)[0]

    return one


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_probabilities_are_timms(engines: Callable[..., Engine], kind: str) -> None:
    """For every size of a batch, up and down."""
    network = engines(kind, "fp32")
    pixels = crops()[::15]
    assert len(pixels) >= 9
    wanted = expected(pixels)
    assert wanted.max() > 0.2, "all alike would prove nothing"
    for n in [*range(1, 10), 3, 1]:
        told = network(pixels[:n])
        assert told.dtype == np.float32 and told.shape == (n, 200)
        np.testing.assert_allclose(told, wanted[:n], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_place_in_the_batch(engines: Callable[..., Engine], kind: str) -> None:
    """Answers neither depend on neighbours nor change when the next batch is computed."""
    network = engines(kind, "fp32")
    pixels = crops()[:6]
    forwards, backwards = network(pixels), network(pixels[::-1].copy())
    kept = forwards.copy()
    np.testing.assert_allclose(backwards[::-1], forwards, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(forwards, kept)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_streams_at_once(engines: Callable[..., Engine], kind: str) -> None:
    """Each call gets its own answer, and it stays what it was."""
    network = engines(kind, "fp32")
    assert (network.streams, network.lanes) == {"openvino": (2, 4), "torch": (1, 1)}[kind]
    pixels = crops()[:24]
    wanted = expected(pixels)
    with ThreadPoolExecutor(network.lanes) as threads:
        told = list(threads.map(network.in_stream, np.split(pixels, [1, 4, 6, 13, 15, 16])))
    np.testing.assert_allclose(np.concatenate(told), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("most, share", [(1, 1), (4, 1), (5, 2), (13, 4)])
def test_largest_batch_of_a_lane(cache_dir: Path, most: int, share: int) -> None:
    """As many images as `max_batch_size` gives each of the four, one image being a network of its
    own."""
    network, _ = create_engine("openvino", SOURCE, "fp32", 2, cache_dir, most)
    assert (network.lanes, network.share) == (4, share)
    pixels = crops()[:share]
    np.testing.assert_allclose(network.in_stream(pixels), expected(pixels), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "most, threads, streams, lanes", [(4, 1, 1, 2), (4, 3, 3, 6), (4, 16, 4, 8), (1, 2, 1, 1)]
)
def test_number_of_streams(
    cache_dir: Path, most: int, threads: int, streams: int, lanes: int
) -> None:
    network, _ = create_engine("openvino", SOURCE, "fp32", threads, cache_dir, 4, most)
    assert (network.streams, network.lanes) == (streams, lanes)


def test_threads_are_bound_to_no_core(cache_dir: Path) -> None:
    """OpenVINO would bind those of every process to the same ones."""
    network, _ = create_engine("openvino", SOURCE, "fp32", available_cores(), cache_dir, 4)
    network(crops()[:1])
    network.in_stream(crops()[:1])
    may = {len(os.sched_getaffinity(int(thread.name))) for thread in TASKS.iterdir()}
    assert may == {len(os.sched_getaffinity(0))}


@pytest.mark.parametrize("kind", ["openvino", "torch"])
@pytest.mark.parametrize("value", [0, 255])
def test_flat_pictures(engines: Callable[..., Engine], kind: str, value: int) -> None:
    pixels = np.full((1, 64, 64, 3), value, np.uint8)
    told = engines(kind, "fp32")(pixels)
    np.testing.assert_allclose(told, expected(pixels), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_bf16_agrees(engines: Callable[..., Engine], kind: str) -> None:
    """On the best label of nearly every photograph, prepared as bf16 allows."""
    description = describe(SOURCE)
    prepare = Preprocessing(
        size=description.input_size,
        interpolation=description.interpolation,
        crop_pct=description.crop_pct,
        crop_mode=description.crop_mode,
        fill=(0, 0, 0),
        exact=False,
    )
    exact = np.stack([truth().probabilities(photo) for photo in photographs()])
    pixels = np.stack([prepare(photo) for photo in photographs()])
    rough = np.concatenate([engines(kind, "bf16")(part) for part in np.split(pixels, 18)])
    np.testing.assert_allclose(rough.sum(axis=1), 1, atol=1e-2)
    assert (rough.argmax(axis=1) == exact.argmax(axis=1)).mean() >= BF16_AGREES
    assert np.abs(rough - exact).max() <= 0.03
    assert np.abs(rough - exact).mean() <= 1e-3


def test_precision_is_told_truly(engines: Callable[..., Engine]) -> None:
    """bf16 where the processor has it, and not where it only was asked for."""
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    exact, rough = engines("openvino", "fp32"), engines("openvino", "bf16")
    assert exact.precision == "fp32"
    assert rough.precision == ("bf16" if can else "fp32")
    assert (exact.name, rough.name) == ("openvino", "openvino")
    differs = (exact(crops()[:4]) != rough(crops()[:4])).any()
    assert differs == (rough.precision != exact.precision)


def test_precision_of_torch(engines: Callable[..., Engine]) -> None:
    exact, rough = engines("torch", "fp32"), engines("torch", "bf16")
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.name.startswith("torch on ")
    assert (exact(crops()[:4]) != rough(crops()[:4])).any()


# --- Which engine -----------------------------------------------------------------------------


def chosen(cache_dir: Path, kind: Any = "auto") -> str:
    return create_engine(kind, SOURCE, "fp32", 1, cache_dir, 4)[0].name.split()[0]


def test_auto(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch where there is a GPU, else openvino where it is installed, else torch."""
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    assert chosen(cache_dir) == "openvino"
    monkeypatch.setattr(engine, "_has_gpu", lambda: True)
    assert chosen(cache_dir) == "torch"
    assert chosen(cache_dir, "openvino") == "openvino"
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    monkeypatch.setattr(engine, "_installed", lambda package: package != "openvino")
    assert chosen(cache_dir) == "torch"
    with pytest.raises(EngineError, match="not installed"):
        chosen(cache_dir, "openvino")


# --- The cache --------------------------------------------------------------------------------

PROGRAM = f"""
import json, logging, sys, pathlib
import numpy as np
sys.path.insert(0, {str(ROOT / "tinyvit")!r})
from checkpoint import Source
from engine import create_engine

logging.basicConfig(level=logging.INFO)
folder, cache = map(pathlib.Path, sys.argv[1:])
engine, description = create_engine("openvino", Source(folder, "it"), "fp32", 1, cache, 4)
size = description.input_size
pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
print(json.dumps({{"answer": engine(pixels).tolist(), "torch": "torch" in sys.modules}}))
"""


def started(folder: Path, cache: Path) -> "subprocess.Popen[str]":
    """A process like a server that comes up."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    output, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return json.loads(output), log


def assert_true(answer: dict[str, Any], folder: Path, size: int = 64) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    wanted = [truth(folder).probabilities(Image.fromarray(one)) for one in pixels]
    np.testing.assert_allclose(answer["answer"], wanted, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is converted quickly."""
    return make_checkpoint(
        tmp_path_factory.mktemp("small") / "small",
        preprocessing={"input_size": (3, 64, 64), "crop_pct": 1.0},
        label_names=["a", "b", "c"],
    )


@pytest.fixture(scope="module")
def filled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after two processes have converted the same network at once."""
    cache = tmp_path_factory.mktemp("filled")
    for process in [started(small, cache), started(small, cache)]:
        assert_true(outcome(process)[0], small)
    return cache


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def kept(cache: Path) -> Path:
    """The one folder in the cache."""
    (folder,) = cache.iterdir()
    assert {p.name for p in folder.iterdir()} == {"model.xml", "model.bin", "description.json"}
    return folder


def test_later_starts_do_without_torch(small: Path, cache: Path) -> None:
    """Neither the conversion nor its gigabyte again."""
    answer, log = outcome(started(small, cache))
    assert "Converting" not in log
    assert not answer["torch"]
    assert_true(answer, small)


def test_conversion_stays_outside(small: Path, tmp_path: Path) -> None:
    """The first start converts in a process of its own, and leaves nothing else behind."""
    answer, log = outcome(started(small, tmp_path / "new" / "cache"))
    assert "Converting" in log
    assert not answer["torch"]
    assert_true(answer, small)
    kept(tmp_path / "new" / "cache")


def flip(name: str, at: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def forget_labels(folder: Path) -> None:
    content = json.loads((folder / "description.json").read_text())
    del content["labels"]
    (folder / "description.json").write_text(json.dumps(content))


DAMAGES = {
    "first byte of the weights": flip("model.bin", 0),
    "byte in the weights": flip("model.bin", 0.5),
    "last byte of the weights": flip("model.bin", 1),
    "byte in the graph": flip("model.xml", 0.5),
    "half the graph": truncate("model.xml"),
    "half the weights": truncate("model.bin"),
    "no graph": remove("model.xml"),
    "no weights": remove("model.bin"),
    "no description": remove("description.json"),
    "empty description": write("description.json", b""),
    "description of garbage": write("description.json", b"\xff\x00{"),
    "description of another kind": write("description.json", b"[]"),
    "description without labels": forget_labels,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(cache: Path, damage: str) -> None:
    assert Converted(kept(cache)).read() is not None
    DAMAGES[damage](kept(cache))
    assert Converted(next(cache.iterdir())).read() is None


@pytest.mark.parametrize("damage", ["byte in the weights", "no graph"])
def test_damage_is_mended(
    small: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](kept(cache))
    with caplog.at_level(logging.INFO, "mlserver.tinyvit"):
        model, description = convert(Source(small, "it"), cache)
    assert "Converting" in caplog.text
    assert description.labels == ["a", "b", "c"]
    assert Converted(kept(cache)).read() is not None
    assert_true({"answer": run(model)}, small)


def run(model: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    return engine.OpenVINOEngine(model, "fp32", 1, 2, 1).in_stream(pixels)


def test_cache_that_cannot_be_written(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is where its folder should be: done without, with a warning."""
    (tmp_path / "file").write_text("in the way")
    model, _ = convert(Source(small, "it"), tmp_path / "file" / "cache")
    assert "cannot be kept" in caplog.text
    assert_true({"answer": run(model)}, small)


def test_other_weights_are_converted_anew(small: Path, cache: Path, tmp_path: Path) -> None:
    """However alike the checkpoint looks."""
    other = Path(shutil.copytree(small, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["classifier.bias"][0] += 3
    save_file(weights, other / "model.safetensors")
    before = kept(cache)
    model, _ = convert(Source(other, "it"), cache)
    assert_true({"answer": run(model)}, other)
    assert len(list(cache.iterdir())) == 2
    assert Converted(before).read() is not None


def test_key(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything the conversion depends on; the name and place of the checkpoint are not."""
    key = conversion._key(Source(small, "it"))
    assert key == conversion._key(Source(small, "by another name"))
    assert key != conversion._key(SOURCE)
    monkeypatch.setattr(conversion, "version", lambda name: f"{name} of tomorrow")
    assert key != conversion._key(Source(small, "it"))


def test_conversion_that_fails(small: Path, tmp_path: Path) -> None:
    """The sentence comes through from the other process, and nothing is kept."""
    broken = Path(shutil.copytree(small, tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="cannot be loaded") as failure:
        convert(Source(broken, "it"), tmp_path / "cache")
    assert str(broken) in str(failure.value) and "\n" not in str(failure.value)
    assert not list((tmp_path / "cache").iterdir())


# --- Cores ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "350000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "350000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert engine._cgroup_quota(tmp_path) == cores


def test_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of affinity and quota, and one at the least."""
    affinity = len(os.sched_getaffinity(0))
    for quota, cores in ((None, affinity), (1, 1), (1000, affinity)):
        monkeypatch.setattr(engine, "_cgroup_quota", lambda quota=quota: quota)
        assert available_cores() == cores


def test_affinity_is_heeded() -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT / 'tinyvit')!r}); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "import engine; print(engine.available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(("workers", "cores", "share"), [(1, 8, 8), (3, 8, 2), (4, 2, 1)])
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int, cores: int, share: int
) -> None:
    worker = Worker.__new__(Worker)
    worker._settings = SimpleNamespace(parallel_workers=workers)
    monkeypatch.setattr(mending.multiprocessing, "current_process", lambda: worker)
    assert mending.share_of(cores) == share


def test_whoever_has_no_workers_has_all_cores() -> None:
    assert mending.share_of(8) == 8


# --- Warming up -------------------------------------------------------------------------------


class Noting:
    """An engine that notes what it is called with."""

    name, precision = "noting", "fp32"

    def __init__(self, streams: int, lanes: int, share: int) -> None:
        self.streams = streams
        self.lanes = lanes
        self.share = share
        self.alone: list[Any] = []
        self.beside: list[Any] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.alone.append((pixels.shape, pixels.dtype))
        return pixels

    def in_stream(self, pixels: np.ndarray) -> np.ndarray:
        self.beside.append((pixels.shape, pixels.dtype))
        return pixels


@pytest.mark.parametrize(
    "streams, lanes, share, beside",
    [(1, 1, 4, [1, 2, 3, 4]), (2, 4, 1, [1]), (2, 4, 2, [1, 2]), (3, 6, 3, [1, 2, 3])],
)
def test_warm_up(streams: int, lanes: int, share: int, beside: list[int]) -> None:
    """Every size of a batch that will come, in every stream."""
    noting = Noting(streams, lanes, share)
    warm_up(noting, (56, 72))
    assert noting.alone == [((1, 56, 72, 3), np.uint8)]
    assert noting.beside == [((n, 56, 72, 3), np.uint8) for n in beside for _ in range(streams)]
