"""An exported folder is served as the checkpoint would be, or refused in one sentence."""

import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.export import BASE_MEMORY, WEIGHTS_IN_MEMORY
from mlserver_timm.checkpoints.exported import (
    BINARY,
    CARD,
    DESCRIPTION,
    FILES,
    MODEL,
    SUMS,
    ExportedModel,
)
from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import CheckpointError, SettingsError
from mlserver_timm.inference.engines import factory
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings
from tests.support.checkpoints import NAMES, assert_one_sentence
from tests.support.paths import ROOT
from tests.support.timm_reference import TOLERANCE, make_checkpoint, timm_reference

pytestmark = pytest.mark.slow

PATIENCE = 400.0
"""Seconds until a conversion counts as hung, on a busy machine."""


def program(*arguments: Any, **options: Any) -> "subprocess.Popen[str]":
    """`python -m mlserver_timm.checkpoints.export`, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlserver_timm.checkpoints.export", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tinyvit"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def exporting(*arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program."""
    process = program(*arguments, **options)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "small",
        preprocessing={"input_size": (3, 64, 64), "crop_pct": 1.0},
        label_names=NAMES,
    )
    (folder / "README.md").write_text("# The card of the checkpoint itself\n")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by somebody whose files nobody else may read by default."""
    out = tmp_path_factory.mktemp("out") / "exported"
    assert stat.S_IMODE((checkpoint / "model.safetensors").stat().st_mode) == 0o600
    code, told, errors = exporting(
        checkpoint.name, out, cwd=checkpoint.parent, preexec_fn=lambda: os.umask(0o077)
    )
    assert code == 0, errors
    assert str(out) in told
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """One to break."""
    return Path(shutil.copytree(exported, tmp_path / "exported"))


def found(folder: Path) -> Checkpoint:
    return find_checkpoint(str(folder), "timm/nobody.asks", None, ROOT)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as failure:
        create_engine(found(folder), RuntimeSettings(), 1, 4)
    assert str(folder) in str(failure.value)
    assert_one_sentence(failure.value)
    return str(failure.value)


def test_everybody_may_read_it(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {*FILES, SUMS}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()}
    assert (modes, stat.S_IMODE(exported.stat().st_mode)) == ({0o644}, 0o755)


def test_sums_are_what_sha256sum_reads(exported: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=exported, check=True)


def test_card(exported: Path, checkpoint: Path) -> None:
    text = (exported / CARD).read_text()
    for told in (str(checkpoint), "mobilenetv3_small_050", "64x64", version("torch"), "apache-2.0"):
        assert told in text
    assert text.rstrip().endswith("# The card of the checkpoint itself")


def test_serves_what_timm_computes(exported: Path, checkpoint: Path) -> None:
    source = found(exported)
    assert source.exported and source.name == str(exported)
    engine, description = create_engine(source, RuntimeSettings(), 1, 4)
    assert description.labels == NAMES
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    told = engine.infer_latency(pixels, [PROBABILITIES])[PROBABILITIES]
    wanted = [timm_reference(checkpoint).probabilities(Image.fromarray(one)) for one in pixels]
    np.testing.assert_allclose(told, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["auto", "openvino"])
def test_openvino_computes_it(exported: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a GPU."""
    monkeypatch.setattr(factory, "_has_gpu", lambda: True)
    assert create_engine(found(exported), RuntimeSettings(engine=kind), 1, 4)[0].name == "openvino"


def test_torch_does_not_compute_it(exported: Path) -> None:
    with pytest.raises(SettingsError, match="'openvino' or 'auto'") as failure:
        create_engine(found(exported), RuntimeSettings(engine="torch"), 1, 4)
    assert_one_sentence(failure.value)


def with_right_sums(folder: Path) -> None:
    sums = subprocess.run(["sha256sum", *FILES], cwd=folder, stdout=subprocess.PIPE, check=True)
    (folder / SUMS).write_bytes(sums.stdout)


def test_network_of_another_openvino(copy: Path) -> None:
    text = (copy / MODEL).read_text()
    (copy / MODEL).write_text(re.sub(r'(<net [^>]*version=)"\d+"', r'\1"99"', text, count=1))
    content = json.loads((copy / DESCRIPTION).read_text())
    (copy / DESCRIPTION).write_text(json.dumps(content | {"openvino": "2099.1"}))
    with_right_sums(copy)
    sentence = refusal(copy)
    assert "2099.1" in sentence and version("openvino") in sentence


def test_description_of_another_version_of_this_code(copy: Path) -> None:
    content = json.loads((copy / DESCRIPTION).read_text())
    content["description"]["temperature"] = content["description"].pop("labels")
    (copy / DESCRIPTION).write_text(json.dumps(content))
    with_right_sums(copy)
    refusal(copy)


def test_written_over_while_it_is_served(copy: Path) -> None:
    """In place, as `cp` does it: the network stays what it was."""
    engine, _ = create_engine(found(copy), RuntimeSettings(), 1, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    before = engine.infer_latency(pixels, [PROBABILITIES])[PROBABILITIES]
    assert str(copy) not in Path("/proc/self/maps").read_text()
    size = (copy / BINARY).stat().st_size
    with open(copy / BINARY, "r+b") as file:
        file.write(b"\xff" * size)
    os.truncate(copy / BINARY, 0)
    again = engine.infer_latency(pixels, [PROBABILITIES])[PROBABILITIES]
    np.testing.assert_array_equal(again, before)


def test_again_in_the_same_place(copy: Path, checkpoint: Path) -> None:
    (copy / BINARY).write_bytes(b"older")
    code, _, errors = exporting(checkpoint, copy)
    assert code == 0, errors
    assert {path.name for path in copy.iterdir()} == {*FILES, SUMS}
    ExportedModel(copy).read()


@pytest.mark.parametrize("out", ["folder", "file", "file/below"])
def test_place_that_is_taken(checkpoint: Path, tmp_path: Path, out: str) -> None:
    """Nothing that somebody has put there is lost."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    code, _, errors = exporting(checkpoint, tmp_path / out)
    assert code == 1
    assert_one_sentence(errors.strip())
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_is_full(checkpoint: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, 512 * 1024))

    code, _, errors = exporting(checkpoint, tmp_path / "out", preexec_fn=limit)
    assert code == 1
    assert errors.strip(), "it says why"
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["timm/nobody.has", "./nowhere", "no name", "a/b/c"])
def test_checkpoint_that_is_none(tmp_path: Path, name: str) -> None:
    code, _, errors = exporting(name, tmp_path / "out")
    assert code == 1
    assert_one_sentence(errors.strip())
    assert not (tmp_path / "out").exists()


def test_broken_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", 1000)
    code, _, errors = exporting(broken, tmp_path / "out")
    assert code == 1 and "cannot be loaded" in errors
    assert_one_sentence(errors.strip())
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_without_arguments() -> None:
    code, _, errors = exporting()
    assert code == 2 and "CHECKPOINT OUT" in errors


def test_exported_folder_as_checkpoint(exported: Path, tmp_path: Path) -> None:
    code, _, errors = exporting(exported, tmp_path / "out")
    assert code == 1
    assert_one_sentence(errors.strip())


def child_of(process: "subprocess.Popen[str]") -> int:
    """The process id of the converter, once it runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(int(PATIENCE / 0.05)):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.05)
    raise TimeoutError


def test_converter_that_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    """As the kernel does where memory runs out: it is said, with what it takes."""
    process = program(checkpoint, tmp_path / "out")
    os.kill(child_of(process), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert f"{(BASE_MEMORY + WEIGHTS_IN_MEMORY * weights) >> 20} MiB" in errors
    assert_one_sentence(errors.strip())
    assert not list((tmp_path / "out").iterdir())
