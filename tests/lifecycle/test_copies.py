"""Copies of the package in one repository: equal ones are shared, others are refused."""

import shutil
from pathlib import Path

import pytest
from mlserver.settings import ModelParameters, ModelSettings

from mlserver_timm.errors import SettingsError
from mlserver_timm.runtime import PACKAGE, check_package
from tests.support.checkpoints import NAMES
from tests.support.clients import COFFEE, LABEL, classify, labels
from tests.support.servers import Serve, add_hook, copy_runtime, two_models


def test_equal_copies_share_one_package(
    serve: Serve, tmp_path: Path, small_checkpoint: Path
) -> None:
    server = serve(folder=two_models(tmp_path / "repository", small_checkpoint))
    for _ in range(3):
        assert labels(classify(server, COFFEE.read_bytes(), model="first"))[0] == LABEL
        second = labels(classify(server, COFFEE.read_bytes(), model="second"))
        assert set(second) == set(NAMES)


def test_model_with_another_version_of_the_package_is_refused(serve: Serve, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    add_hook(repository)
    copy_runtime(repository / "first", name="first")
    second = copy_runtime(repository / "second", name="second")
    errors = second / "mlserver_timm" / "errors.py"
    errors.write_text(errors.read_text() + "\nEDITED = True\n")
    server = serve(folder=repository, ready=False)
    assert server.process.wait(60) == 1
    last_line = server.output().rstrip().splitlines()[-1]
    assert str(PACKAGE) in last_line, last_line
    assert "repository/second/mlserver_timm" in last_line, last_line


@pytest.mark.parametrize("change", ["edit", "add", "remove", "edit in a subpackage"])
def test_what_makes_a_copy_differ(tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "mlserver_timm")
    check_package(tmp_path)
    if change == "edit":
        (copy / "errors.py").write_text((copy / "errors.py").read_text().replace("404", "400", 1))
        (copy / "errors.py").write_text((copy / "errors.py").read_text() + "#")
    elif change == "add":
        (copy / "extra.py").write_text("")
    elif change == "remove":
        (copy / "py.typed").unlink()
    else:
        (copy / "protocol" / "request.py").write_text("")
    with pytest.raises(SettingsError, match=str(tmp_path)) as error:
        check_package(tmp_path)
    assert str(PACKAGE) in str(error.value)


def test_folder_without_a_copy_is_accepted(tmp_path: Path) -> None:
    settings = ModelSettings(name="x", implementation="mlserver_timm.TimmClassifier")
    settings.parameters = ModelParameters(uri=str(tmp_path))
    check_package(tmp_path)
