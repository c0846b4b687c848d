"""KServe's own clients, REST and gRPC, with their defaults."""

import json

import pytest

from client.local import LocalServer
from tests.support.clients import CAT, classify
from tests.support.paths import ROOT
from tests.support.programs import output_of

pytestmark = pytest.mark.slow

PYTHON = ROOT / ".venv-kserve" / "bin" / "python"


def test_arrays_and_files_by_rest_and_grpc(server: LocalServer) -> None:
    assert PYTHON.exists(), "make .venv-kserve/.installed"
    output = output_of(PYTHON, "tests/kserve_sdk/ask.py", server.url, server.grpc, CAT, timeout=400)
    answers = json.loads(output)
    assert answers.pop("REST ready") and answers.pop("gRPC ready")
    assert len(answers) == 6, list(answers)
    expected = [one["label"] for one in classify(server, CAT.read_bytes()).json()]
    assert all(labels == expected for labels in answers.values()), answers
