"""Copies of the package in one repository: equal ones are shared, others are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlserver_timm.errors import SettingsError
from mlserver_timm.runtime import PACKAGE, check_package
from tests.support.servers import Serve, add_hook, copy_model


def test_server_refuses_a_model_with_another_version_of_the_package(
    serve: Serve, tmp_path: Path
) -> None:
    """test_versions.py serves equal copies."""
    repository = tmp_path / "repository"
    repository.mkdir()
    add_hook(repository)
    copy_model(repository / "first", name="first")
    second = copy_model(repository / "second", name="second")
    errors = second / "mlserver_timm" / "errors.py"
    errors.write_text(errors.read_text() + "\nEDITED = True\n")
    server = serve(folder=repository, ready=False)
    assert server.process.wait(240) == 1
    last_line = server.output().rstrip().splitlines()[-1]
    assert str(PACKAGE) in last_line, last_line
    assert "repository/second/mlserver_timm" in last_line, last_line


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda copy: (copy / "errors.py").write_text("#"),
    "edited in a subpackage": lambda copy: (copy / "protocol" / "request.py").write_text("#"),
    "added": lambda copy: (copy / "extra.py").touch(),
    "removed": lambda copy: (copy / "py.typed").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copy_is_refused(tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "mlserver_timm")
    check_package(tmp_path)
    CHANGES[change](copy)
    with pytest.raises(SettingsError, match=str(tmp_path)) as error:
        check_package(tmp_path)
    assert str(PACKAGE) in str(error.value)


def test_folder_without_a_copy_is_accepted(tmp_path: Path) -> None:
    check_package(tmp_path)
