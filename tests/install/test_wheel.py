"""The wheel, installed into a fresh environment, serves folders that hold settings only."""

import site
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from client.local import LocalServer, start
from tests.support.clients import CAT, body, classify, infer, labels, tensor
from tests.support.folders import FOLDER
from tests.support.paths import ROOT
from tests.support.pins import requirements
from tests.support.servers import HOOK, write_model, write_settings

pytestmark = pytest.mark.slow

UV = Path(sys.executable).with_name("uv")
PACKAGE = ROOT / "tinyvit" / "mlserver_timm"
CAT_LABEL = "tiger cat"

NO_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'huggingface_hub']))"
"""A line of a .pth file after which these imports fail, and find_spec finds nothing."""

ServeFolder = Callable[..., LocalServer]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel` builds it."""
    out = tmp_path_factory.mktemp("dist")
    command = [UV, "build", "--quiet", "--wheel", "--out-dir", out]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and MLServer's command; it imports the other packages from
    the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [UV, "pip", "install", "--quiet", "--no-deps", "--python", folder / "bin" / "python"]
    subprocess.run([*install, wheel, f"mlserver=={version('mlserver')}"], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (dependencies,) = (each for each in site.getsitepackages() if Path(each).is_dir())
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({dependencies!r})\n")
    return folder


@pytest.fixture
def serve_folder(
    venv: Path, environment: Mapping[str, str], tmp_path: Path
) -> Iterator[ServeFolder]:
    """Start `mlserver start FOLDER` in the new environment with a folder of settings only."""
    with ExitStack() as stack:

        def one(uri: Path) -> LocalServer:
            folder = tmp_path / "cats"
            write_model(folder, "cats", parameters={"uri": str(uri)})
            write_settings(folder, **HOOK)
            server = start(
                folder,
                env=environment,
                log=tmp_path / "server.log",
                cwd=tmp_path,
                mlserver=venv / "bin" / "mlserver",
            )
            stack.callback(server.kill)
            return server.wait(240)

        yield one


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
    command = [venv / "bin" / "python", "-c", "import mlserver_timm; print(mlserver_timm.__file__)"]
    done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(venv)


def test_checkpoint(serve_folder: ServeFolder) -> None:
    server = serve_folder(ROOT / "tinyvit" / "sample")
    assert top_label(server) == CAT_LABEL
    assert labels(classify(server, CAT.read_bytes(), model="cats"))[0] == CAT_LABEL


def test_exported_folder_without_torch(
    venv: Path, serve_folder: ServeFolder, exported_sample: Path
) -> None:
    (packages,) = venv.glob("lib/python*/site-packages")
    block = packages / "no_torch.pth"
    block.write_text(NO_TORCH)
    try:
        code = "import importlib.util; print(importlib.util.find_spec('torch'))"
        command = [venv / "bin" / "python", "-c", code]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert done.stdout.strip() == "None"
        server = serve_folder(exported_sample)
        assert top_label(server) == CAT_LABEL
        assert labels(classify(server, CAT.read_bytes(), model="cats"))[0] == CAT_LABEL
    finally:
        block.unlink()


def top_label(server: LocalServer) -> str:
    """Return the cat's label from `/infer`."""
    return labels(infer(server, body(tensor(CAT.read_bytes())), model="cats"))[0]
