"""The wheel, installed into a fresh environment, serves folders that hold settings only."""

import site
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.clients import CAT, body, classify, infer, labels, tensor
from tests.support.folders import FOLDER
from tests.support.paths import ROOT, SAMPLE
from tests.support.pins import requirements
from tests.support.programs import UV, output_of
from tests.support.servers import HOOK, Serve, write_model, write_settings

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "tinyvit" / "mlserver_timm"
CAT_LABEL = "tiger cat"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel` builds it."""
    out = tmp_path_factory.mktemp("dist")
    output_of(UV, "build", "--wheel", "--out-dir", out, timeout=None)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and MLServer's command; it imports the other packages from
    the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    output_of(UV, "venv", "--python", sys.executable, folder)
    install = (UV, "pip", "install", "--no-deps", "--python", folder / "bin" / "python")
    output_of(*install, wheel, f"mlserver=={version('mlserver')}", timeout=None)
    (packages,) = folder.glob("lib/python*/site-packages")
    (dependencies,) = (each for each in site.getsitepackages() if Path(each).is_dir())
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({dependencies!r})\n")
    return folder


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if "dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert packed == {str(path.relative_to(PACKAGE.parent)) for path in files}
    assert {"mlserver_timm/py.typed", "mlserver_timm/server/page.html"} <= packed


def test_metadata(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Name"] == "mlserver-timm"
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_payload() == (ROOT / "README.md").read_text()


def test_dependencies(wheel: Path) -> None:
    """Serving takes what requirements-serve.txt names; checkpoints take what requirements.txt adds,
    without the client's packages."""
    needed = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]
    serving = {str(each) for each in needed if not each.marker}
    assert serving == {str(each) for each in requirements(FOLDER / "requirements-serve.txt")}
    extra = {each.name for each in needed if each.marker and "checkpoints" in str(each.marker)}
    direct = {each.name for each in requirements(FOLDER / "requirements.txt")}
    serving_names = {Requirement(line).name for line in serving}
    assert extra == direct - serving_names - {"requests", "tqdm"}


def test_package_comes_from_the_wheel(venv: Path) -> None:
    code = "import mlserver_timm; print(mlserver_timm.__file__)"
    output = output_of(venv / "bin" / "python", "-c", code, cwd="/")
    assert Path(output.strip()).is_relative_to(venv)


def test_a_folder_of_settings_is_served(venv: Path, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    write_model(folder, "cats", parameters={"uri": str(SAMPLE)})
    write_settings(folder, **HOOK)
    server = serve(folder=folder, mlserver=venv / "bin" / "mlserver")
    image = CAT.read_bytes()
    assert labels(infer(server, body(tensor(image)), model="cats"))[0] == CAT_LABEL
    assert labels(classify(server, image, model="cats"))[0] == CAT_LABEL
