"""The export program writes a folder that serves what timm computes, or says why it cannot."""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlserver.settings import ModelParameters, ModelSettings
from PIL import Image

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.export import BASE_MEMORY, DRAFT, WEIGHTS_IN_MEMORY, main
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
from mlserver_timm.inference.pipeline import load_pipeline
from mlserver_timm.settings import RuntimeSettings
from tests.support.checkpoints import NAMES, assert_one_sentence
from tests.support.clients import until
from tests.support.paths import ROOT
from tests.support.processes import children_of
from tests.support.timm_reference import TOLERANCE, timm_reference

pytestmark = pytest.mark.slow

TIMEOUT = 400.0
"""Seconds until a conversion counts as hung, on a busy machine."""


def start_export(*arguments: Any, **options: Any) -> "subprocess.Popen[str]":
    """Start `python -m mlserver_timm.checkpoints.export`."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlserver_timm.checkpoints.export", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tinyvit"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_export(*arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of the program."""
    process = start_export(*arguments, **options)
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with a model card."""
    folder = shutil.copytree(small_checkpoint, tmp_path_factory.mktemp("checkpoint") / "small")
    (folder / "README.md").write_text("# The card of the checkpoint itself\n")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export by a user whose umask denies others everything."""
    out = tmp_path_factory.mktemp("out") / "exported"
    assert stat.S_IMODE((checkpoint / "model.safetensors").stat().st_mode) == 0o600
    status, output, errors = run_export(
        checkpoint.name, out, cwd=checkpoint.parent, preexec_fn=lambda: os.umask(0o077)
    )
    assert status == 0, errors
    assert str(out) in output
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return shutil.copytree(exported, tmp_path / "exported")


def find(folder: Path) -> Checkpoint:
    return find_checkpoint(str(folder), "timm/unused", None, ROOT)


def probabilities(engine: Any, count: int = 1) -> np.ndarray:
    return engine.infer_latency(pixels(count), [PROBABILITIES])[PROBABILITIES]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_all_users_may_read_the_files(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {*FILES, SUMS}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()}
    assert (modes, stat.S_IMODE(exported.stat().st_mode)) == ({0o644}, 0o755)


def test_sha256sum_reads_the_digests(exported: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=exported, check=True)


def test_card(exported: Path, checkpoint: Path) -> None:
    card = (exported / CARD).read_text()
    for fact in (str(checkpoint), "mobilenetv3_small_050", "64x64", version("torch"), "apache-2.0"):
        assert fact in card
    assert card.rstrip().endswith("# The card of the checkpoint itself")


def test_engine_computes_what_timm_computes(exported: Path, checkpoint: Path) -> None:
    source = find(exported)
    assert source.exported and source.name == str(exported)
    engine, description = create_engine(source, RuntimeSettings(), 1, 4)
    assert description.labels == NAMES
    expected = [
        timm_reference(checkpoint).probabilities(Image.fromarray(image)) for image in pixels(3)
    ]
    np.testing.assert_allclose(probabilities(engine, 3), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["auto", "openvino"])
def test_openvino_is_the_engine(exported: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with a GPU."""
    monkeypatch.setattr(factory, "_has_gpu", lambda: True)
    assert create_engine(find(exported), RuntimeSettings(engine=kind), 1, 4)[0].name == "openvino"


def test_torch_cannot_be_the_engine(exported: Path) -> None:
    with pytest.raises(SettingsError, match="'openvino' or 'auto'") as failure:
        create_engine(find(exported), RuntimeSettings(engine="torch"), 1, 4)
    assert_one_sentence(failure.value)


def update_sums(folder: Path) -> None:
    sums = subprocess.run(["sha256sum", *FILES], cwd=folder, stdout=subprocess.PIPE, check=True)
    (folder / SUMS).write_bytes(sums.stdout)


def test_labels_that_do_not_fit_the_network_are_refused(copy: Path) -> None:
    content = json.loads((copy / DESCRIPTION).read_text())
    content["description"]["labels"].pop()
    (copy / DESCRIPTION).write_text(json.dumps(content))
    update_sums(copy)
    parameters = ModelParameters(uri=str(copy))
    settings = ModelSettings(implementation="mlserver.MLModel", parameters=parameters)
    with pytest.raises(CheckpointError, match="classes but") as failure:
        asyncio.run(load_pipeline(settings))
    assert_one_sentence(failure.value)


def newer_openvino(folder: Path) -> None:
    network = (folder / MODEL).read_text()
    (folder / MODEL).write_text(re.sub(r'(<net [^>]*version=)"\d+"', r'\1"99"', network, count=1))
    content = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(content | {"openvino": "2099.1"}))


def newer_description(folder: Path) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    content["description"]["temperature"] = content["description"].pop("labels")
    (folder / DESCRIPTION).write_text(json.dumps(content))


def no_object(folder: Path) -> None:
    (folder / DESCRIPTION).write_text("[]")


def no_json(folder: Path) -> None:
    (folder / DESCRIPTION).write_text("{")


@pytest.mark.parametrize("change", [newer_openvino, newer_description, no_object, no_json])
def test_export_of_a_newer_version_is_refused(copy: Path, change: Any) -> None:
    """The digests are right; the versions of OpenVINO are named."""
    change(copy)
    update_sums(copy)
    with pytest.raises(CheckpointError, match=re.escape(str(copy))) as failure:
        create_engine(find(copy), RuntimeSettings(), 1, 4)
    assert_one_sentence(failure.value)
    if change is newer_openvino:
        assert "2099.1" in str(failure.value) and version("openvino") in str(failure.value)


def test_overwriting_a_served_export_changes_nothing(copy: Path) -> None:
    """In place, as `cp` does it."""
    engine, _ = create_engine(find(copy), RuntimeSettings(), 1, 4)
    before = probabilities(engine)
    assert str(copy) not in Path("/proc/self/maps").read_text()
    size = (copy / BINARY).stat().st_size
    with open(copy / BINARY, "r+b") as file:
        file.write(b"\xff" * size)
    os.truncate(copy / BINARY, 0)
    np.testing.assert_array_equal(probabilities(engine), before)


def test_older_export_is_replaced(copy: Path, checkpoint: Path) -> None:
    """Also if a later one was killed and has left a draft."""
    (copy / BINARY).write_bytes(b"older")
    (copy / f"{DRAFT}killed").mkdir()
    os.utime(copy / f"{DRAFT}killed", (0, 0))
    assert main([str(checkpoint), str(copy)]) == 0
    assert {path.name for path in copy.iterdir()} == {*FILES, SUMS}
    ExportedModel(copy).read()


# --- Refusals: one sentence, and nothing is written ---------------------------------------------


def refusal(capfd: pytest.CaptureFixture[str], checkpoint: Path, out: Path) -> str:
    """Return the last line of a failed export."""
    assert main([str(checkpoint), str(out)]) == 1
    *_, sentence = capfd.readouterr().err.strip().splitlines()
    assert_one_sentence(sentence)
    return sentence


@pytest.mark.parametrize("out", ["folder", "file", "file/below", "n" * 300])
def test_other_files_are_not_overwritten(
    checkpoint: Path, tmp_path: Path, out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    files = [tmp_path / "folder" / "thesis.txt", tmp_path / "file"]
    for file in files:
        file.write_text("mine")
    refusal(capfd, checkpoint, tmp_path / out)
    assert [file.read_text() for file in files] == ["mine"] * 2


def test_truncated_weights(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converter's error comes through from its process."""
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    assert "cannot be loaded" in refusal(capfd, broken, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_exported_folder_is_no_checkpoint(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal(capfd, exported, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, 512 * 1024))

    status, _, errors = run_export(checkpoint, tmp_path / "out", preexec_fn=limit)
    assert status == 1
    assert errors.strip(), "the reason"
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_usage_and_unknown_checkpoint(tmp_path: Path) -> None:
    status, _, errors = run_export()
    assert status == 2 and "CHECKPOINT OUT" in errors
    status, _, errors = run_export("timm/nobody.has", tmp_path / "out")
    assert status == 1 and not (tmp_path / "out").exists()
    assert_one_sentence(errors.strip())


def test_killed_converter(checkpoint: Path, tmp_path: Path) -> None:
    """The kernel kills it when memory runs out; the error says how much it needs."""
    process = start_export(checkpoint, tmp_path / "out")
    os.kill(until(lambda: children_of(process.pid), TIMEOUT)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert f"{(BASE_MEMORY + WEIGHTS_IN_MEMORY * weights) >> 20} MiB" in errors
    assert_one_sentence(errors.strip())
    assert not list((tmp_path / "out").iterdir())
