"""Without the line in settings.json, MLServer's own routes still give correct answers."""

from pathlib import Path

import pytest

from tests.support.clients import (
    COFFEE,
    LABEL,
    body,
    classify,
    infer,
    labels,
    message,
    stub,
    tensor,
    workers,
)
from tests.support.folders import copy_runtime
from tests.support.probes import OTHER, OURS, Model, answer, repository
from tests.support.servers import Serve, write_settings

LINE = '"model_repository_implementation": "mlserver_timm.server.ModelRepository"'


def test_right_answers_and_one_warning(serve: Serve, tmp_path: Path) -> None:
    folder = copy_runtime(tmp_path)
    write_settings(folder, debug=False, parallel_workers=1)
    server = serve(folder=folder)
    image = COFFEE.read_bytes()
    assert labels(infer(server, body(tensor(image))))[0] == LABEL
    refused = infer(server, body(tensor(b"no image")))
    assert refused.status_code == 400 and refused.json()["error"].startswith("The bytes are no")
    answered = stub(server).ModelInfer(message(bytes_contents=[image]), timeout=30)
    assert answered.outputs[0].contents.bytes_contents[0] == LABEL.encode()
    assert classify(server, image).status_code == 404
    assert server.output().count(LINE) == 1
    assert server.stop() == 0


def test_model_stays_out_of_workers(serve: Serve, tmp_path: Path) -> None:
    """Also with settings for MLServer's batcher, which would merge requests."""
    ours = Model(settings={"max_batch_size": 8, "max_batch_time": 3})
    server = serve(folder=repository(tmp_path, ours, OTHER, workers=1, hook=False))
    assert answer(server, "pid") == str(server.process.pid)
    assert [int(answer(server, "pid", "other"))] == workers(server)


@pytest.mark.parametrize("variable", [False, True])
def test_no_warning_with_the_line(serve: Serve, tmp_path: Path, variable: bool) -> None:
    """The line may be in the file or in the environment."""
    name = "mlserver_timm.server.ModelRepository"
    environment = {"MLSERVER_MODEL_REPOSITORY_IMPLEMENTATION": name} if variable else {}
    folder = repository(tmp_path, OURS, hook=not variable)
    server = serve(folder=folder, env=environment)
    assert answer(server, "echo:x") == "x"
    assert "WARNING" not in server.output().replace("different than model's folder", "")
