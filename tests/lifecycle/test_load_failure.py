"""A model that cannot be loaded ends the server."""

from pathlib import Path

from tests.support.background_load import altered
from tests.support.clients import children, until
from tests.support.folders import copy_runtime
from tests.support.servers import Serve


def test_damaged_weights_end_the_server(serve: Serve, tmp_path: Path) -> None:
    """Exit status 1; the last line has the reason; no process is left."""
    folder = copy_runtime(tmp_path)
    weights = folder / "sample" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    altered(
        folder,
        "model-settings.json",
        lambda content: content | {"parameters": content["parameters"] | {"uri": "./sample"}},
    )
    server = serve(folder=folder, ready=False)
    assert server.process.wait(240) == 1
    last_line = server.output().rstrip().splitlines()[-1]
    assert last_line.startswith("The server stops") and str(weights.parent) in last_line, last_line
    until(lambda: not children(server), 5)
