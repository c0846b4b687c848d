"""A model that cannot be loaded ends the server, and the last line says why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.background_load import altered, extra
from tests.support.clients import children, until
from tests.support.servers import Serve, settings as copy_with_workers


def unknown_setting(folder: Path) -> str:
    altered(folder, "model-settings.json", extra(presicion="bf16"))
    return "presicion"


def missing_uri(folder: Path) -> str:
    def change(content: Any) -> Any:
        content["parameters"]["uri"] = "./nowhere"
        return content

    altered(folder, "model-settings.json", change)
    return "nowhere"


def damaged_weights(folder: Path) -> str:
    shutil.copytree(folder / "sample", folder / "broken")
    weights = folder / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    def change(content: Any) -> Any:
        content["parameters"]["uri"] = "./broken"
        return content

    altered(folder, "model-settings.json", change)
    return "broken"


BREAKS = {f.__name__: f for f in (unknown_setting, missing_uri, damaged_weights)}


@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS.keys())
def test_model_that_cannot_be_loaded(
    serve: Serve, tmp_path: Path, break_it: Callable[[Path], str]
) -> None:
    """Exit status 1, and the last line says why."""
    folder = copy_with_workers(tmp_path, workers=0)
    named = break_it(folder)
    server = serve(folder=folder, ready=False)
    assert server.process.wait(60) == 1
    last = server.output().rstrip().splitlines()[-1]
    assert last.startswith("The server stops") and named in last, last
    until(lambda: not children(server), 5)
