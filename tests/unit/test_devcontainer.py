"""The dev container installs the lab's environment and forwards the server's port."""

import json
import re
from typing import Any

import pytest
from mlserver.settings import Settings

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    return json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def test_image_has_a_python_that_the_makefile_accepts(container: dict[str, Any]) -> None:
    version = re.search(r"python:3\.(\d+)-", container["image"])
    first, last = re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", MAKEFILE).groups()
    assert int(first) <= int(version[1]) <= int(last)


def test_it_installs_the_environment_and_opens_it(container: dict[str, Any]) -> None:
    assert re.fullmatch(r"make install( TORCH=cpu)?", container["postCreateCommand"])
    assert re.search("^install:", MAKEFILE, re.M)
    venv = re.search(r"^VENV := (.+)$", MAKEFILE, re.M)[1]
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == f"${{containerWorkspaceFolder}}/{venv}/bin/python"


def test_it_forwards_the_servers_port(container: dict[str, Any]) -> None:
    port = Settings.model_fields["http_port"].default
    assert container["forwardPorts"] == [port]
    assert set(container["portsAttributes"]) == {str(port)}
