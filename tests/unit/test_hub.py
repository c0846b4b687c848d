"""The weights are found in a folder, the cache or on the hub, or the error says why not."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.errors import CheckpointError
from tests.support.checkpoints import REPOSITORY, REVISION, assert_one_sentence, fill_cache, hub
from tests.support.paths import ROOT
from tests.support.programs import run_program
from tests.support.timm_reference import SAMPLE

FALL_BACK_WITHIN = 15.0


def test_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is relative to the settings' folder, not to the working directory."""
    base = ROOT / "tinyvit"
    monkeypatch.chdir(tmp_path)
    for uri in ("sample", "./sample", "../tinyvit/sample", str(SAMPLE), SAMPLE.as_uri()):
        assert find_checkpoint(uri, REPOSITORY, None, base).folder == SAMPLE
    spaced = Path(shutil.copytree(SAMPLE, tmp_path / "a folder"))
    for uri in (str(spaced), spaced.as_uri()):
        assert find_checkpoint(uri, REPOSITORY, None, base).folder == spaced


@pytest.mark.parametrize(
    "uri",
    ["nowhere", "/nowhere/at/all", "s3://bucket/model", "sample/config.json", "n" * 300, "loop"],
)
def test_uri_that_is_not_a_folder(uri: str, tmp_path: Path) -> None:
    """An error, although there is a fallback."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    uri = str(tmp_path / uri) if uri == "loop" else uri
    with pytest.raises(CheckpointError) as failure:
        find_checkpoint(uri, REPOSITORY, "sample", ROOT / "tinyvit")
    assert_one_sentence(failure.value)


FIND = f"""
import json, logging, sys, time
sys.path.insert(0, {str(ROOT / "tinyvit")!r})
from pathlib import Path
from mlserver_timm.errors import CheckpointError
from mlserver_timm.checkpoints.hub import find_checkpoint

logging.basicConfig()
started = time.monotonic()
try:
    source = find_checkpoint(None, sys.argv[1], sys.argv[2] or None, Path("tinyvit"))
    result = dict(folder=str(source.folder), name=source.name, fallback=source.fallback)
except CheckpointError as error:
    result = dict(error=str(error))
print(json.dumps(result | dict(seconds=time.monotonic() - started)))
"""


def find(
    endpoint: str, home: Path, fallback: str = "sample", name: str = REPOSITORY
) -> dict[str, Any]:
    """Return the result of find_checkpoint in a process of its own, and its log: the hub's client
    reads variables only once."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = (sys.executable, "-c", FIND, name, fallback)
    done = run_program(*command, env=os.environ | variables, timeout=60)
    assert done.status == 0, done.errors
    return {**json.loads(done.output), "log": done.errors}


@contextmanager
def black_hole() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


CLOSED = "http://127.0.0.1:1"
"""No server listens on this port."""

UNREACHABLE = {
    "silent": black_hole,
    "closed": lambda: nullcontext(CLOSED),
    "broken": lambda: hub(502),
    "busy": lambda: hub(429),
}


@pytest.mark.slow
def test_download(small_checkpoint: Path, tmp_path: Path) -> None:
    """Once from the hub, later from its cache. Only the needed files are downloaded."""
    files = {path.name: path.read_bytes() for path in small_checkpoint.iterdir()}
    with hub(files | {"pytorch_model.bin": b"pickle"}) as endpoint:
        result = find(endpoint, tmp_path)
    assert result["name"] == REPOSITORY and not result["fallback"], result["log"]
    folder = Path(result["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    again = find(CLOSED, tmp_path)
    assert again["folder"] == result["folder"] and not again["fallback"]


@pytest.mark.slow
@pytest.mark.parametrize("how", UNREACHABLE)
def test_hub_out_of_reach(tmp_path: Path, how: str) -> None:
    """The fallback is served in time, with one warning."""
    with UNREACHABLE[how]() as endpoint:
        result = find(endpoint, tmp_path)
    assert result["fallback"] and result["name"] == "sample"
    assert result["folder"] == str(SAMPLE)
    assert result["seconds"] < FALL_BACK_WITHIN
    assert result["log"].count("SERVING THE FALLBACK") == 1


@pytest.mark.slow
def test_cache_overrides_the_fallback(small_checkpoint: Path, tmp_path: Path) -> None:
    without = find(CLOSED, tmp_path, fallback="")
    assert REPOSITORY in without["error"] and "extra.fallback" in without["error"]
    fill_cache(tmp_path, small_checkpoint)
    cached = find(CLOSED, tmp_path)
    assert cached["name"] == REPOSITORY and not cached["fallback"]
    assert REVISION in cached["folder"] and "FALLBACK" not in cached["log"]


@pytest.mark.slow
def test_a_download_that_breaks_off(small_checkpoint: Path, tmp_path: Path) -> None:
    """The fallback is served, now and without the hub: half a model in the cache counts as none."""
    files = {path.name: path.read_bytes() for path in small_checkpoint.iterdir()}
    with hub(files, cut=True) as endpoint:
        broken = find(endpoint, tmp_path)
    assert broken["fallback"] and "broke off" in broken["log"]
    assert find(CLOSED, tmp_path)["fallback"]


@pytest.mark.slow
def test_an_incomplete_model_in_the_cache(small_checkpoint: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, small_checkpoint)
    (weights,) = tmp_path.rglob("model.safetensors")
    weights.unlink()
    assert find(CLOSED, tmp_path)["fallback"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 404])
def test_hub_refuses(tmp_path: Path, status: int) -> None:
    """A model that the hub lacks or protects is an error, not a reason for the fallback."""
    with hub(status) as endpoint:
        result = find(endpoint, tmp_path)
    assert REPOSITORY in result["error"]
    assert_one_sentence(result["error"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["not a name", "a/b/c", "timm/..", ""])
def test_invalid_name(tmp_path: Path, name: str) -> None:
    assert "Name one such as" in find(CLOSED, tmp_path, name=name)["error"]


@pytest.mark.slow
def test_hub_without_safetensors(tmp_path: Path) -> None:
    """Pickles run code when they are read, so they are not even downloaded."""
    with hub({"config.json": b"{}", "pytorch_model.bin": b"pickle"}) as endpoint:
        result = find(endpoint, tmp_path)
    assert "model.safetensors" in result["error"]
    assert not list(tmp_path.rglob("pytorch_model.bin"))
