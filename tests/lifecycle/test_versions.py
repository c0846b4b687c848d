"""Two versions of a model: each route answers from the version that MLServer would answer from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import requests

from client.local import LocalServer
from tests.support.checkpoints import NAMES
from tests.support.clients import COFFEE, LABEL, body, classify, infer, labels, repository, tensor
from tests.support.paths import ROOT
from tests.support.servers import Serve, add_hook

IMAGE = COFFEE.read_bytes()


def make_versions(root: Path, small_checkpoint: Path) -> Path:
    """Version 1 serves the sample, version 2 three classes."""
    root.mkdir()
    add_hook(root, debug=False, parallel_workers=0)
    for version, uri in (("1", str(ROOT / "tinyvit" / "sample")), ("2", str(small_checkpoint))):
        folder = root / f"tinyvit-{version}"
        shutil.copytree(
            ROOT / "tinyvit", folder, ignore=shutil.ignore_patterns("__pycache__", "sample")
        )
        (folder / "settings.json").unlink()
        path = folder / "model-settings.json"
        settings = json.loads(path.read_text())
        settings["parameters"] |= {"version": version, "uri": uri}
        path.write_text(json.dumps(settings))
    return root


def told(server: LocalServer, model: str) -> list[str]:
    """Labels, the same by infer and by classify."""
    by_infer = labels(infer(server, body(tensor(IMAGE)), model=model))
    assert labels(classify(server, IMAGE, model=model)) == by_infer
    return by_infer


def is_sample(found: list[str]) -> bool:
    return found[0] == LABEL and len(found) == 5


def is_small(found: list[str]) -> bool:
    return set(found) == set(NAMES)


def test_versions(serve: Serve, tmp_path: Path, small_checkpoint: Path) -> None:
    """The newest answers where none is named; unloading one leaves the other serving."""
    root = make_versions(tmp_path / "repository", small_checkpoint)
    server = serve(folder=root)
    assert is_small(told(server, "tinyvit"))
    assert is_small(told(server, "tinyvit/versions/2"))
    assert is_sample(told(server, "tinyvit/versions/1"))
    assert_no_version(server, "3")

    shutil.move(root / "tinyvit-2", tmp_path / "taken-out")
    assert repository(server, "load").status_code == 200
    assert is_sample(told(server, "tinyvit"))
    assert is_sample(told(server, "tinyvit/versions/1"))
    assert_no_version(server, "2")

    shutil.move(tmp_path / "taken-out", root / "tinyvit-2")
    assert repository(server, "load").status_code == 200
    assert is_small(told(server, "tinyvit"))
    shutil.move(root / "tinyvit-1", tmp_path / "taken-out")
    assert repository(server, "load").status_code == 200
    assert is_small(told(server, "tinyvit"))
    assert_no_version(server, "1")
    assert requests.get(f"{server.url}/v2/health/ready", timeout=10).ok


def assert_no_version(server: LocalServer, version: str) -> None:
    model = f"tinyvit/versions/{version}"
    routes: list[Callable[[], requests.Response]] = [
        lambda: infer(server, body(tensor(IMAGE)), model=model),
        lambda: classify(server, IMAGE, model=model),
    ]
    for ask in routes:
        assert ask().status_code == 404
