"""Two versions of a model: each route uses the version that MLServer would use."""

import shutil
from pathlib import Path

import requests

from client.local import LocalServer
from tests.support.checkpoints import NAMES
from tests.support.clients import COFFEE, LABEL, body, classify, infer, labels, repository, tensor
from tests.support.paths import SAMPLE
from tests.support.servers import Serve, add_hook, copy_model

IMAGE = COFFEE.read_bytes()


def make_versions(root: Path, small_checkpoint: Path) -> Path:
    """Return a repository: version 1 serves the sample, version 2 three classes."""
    root.mkdir()
    add_hook(root, debug=False, parallel_workers=0)
    for version, uri in (("1", str(SAMPLE)), ("2", str(small_checkpoint))):
        copy_model(root / f"tinyvit-{version}", parameters={"version": version, "uri": uri})
    return root


def both_routes(server: LocalServer, model: str) -> list[str]:
    """Return the labels, which infer and classify must agree on."""
    by_infer = labels(infer(server, body(tensor(IMAGE)), model=model))
    assert labels(classify(server, IMAGE, model=model)) == by_infer
    return by_infer


def is_sample(names: list[str]) -> bool:
    return names[0] == LABEL and len(names) == 5


def is_small(names: list[str]) -> bool:
    return set(names) == set(NAMES)


def test_versions(serve: Serve, tmp_path: Path, small_checkpoint: Path) -> None:
    """The newest is the default; each version stays when the other is unloaded."""
    root = make_versions(tmp_path / "repository", small_checkpoint)
    server = serve(folder=root)
    assert is_small(both_routes(server, "tinyvit"))
    assert is_small(both_routes(server, "tinyvit/versions/2"))
    assert is_sample(both_routes(server, "tinyvit/versions/1"))
    assert_no_version(server, "3")

    shutil.move(root / "tinyvit-2", tmp_path / "taken-out")
    assert repository(server, "load").status_code == 200
    assert is_sample(both_routes(server, "tinyvit"))
    assert is_sample(both_routes(server, "tinyvit/versions/1"))
    assert_no_version(server, "2")

    shutil.move(tmp_path / "taken-out", root / "tinyvit-2")
    assert repository(server, "load").status_code == 200
    assert is_small(both_routes(server, "tinyvit"))
    shutil.move(root / "tinyvit-1", tmp_path / "taken-out")
    assert repository(server, "load").status_code == 200
    assert is_small(both_routes(server, "tinyvit"))
    assert_no_version(server, "1")
    assert requests.get(f"{server.url}/v2/health/ready", timeout=10).ok


def assert_no_version(server: LocalServer, version: str) -> None:
    model = f"tinyvit/versions/{version}"
    assert infer(server, body(tensor(IMAGE)), model=model).status_code == 404
    assert classify(server, IMAGE, model=model).status_code == 404
