"""gRPC clients learn that they may send a refused request again."""

from pathlib import Path

import pytest

from tests.support.probes import OTHER, OURS, code, repository
from tests.support.servers import Serve

CODES = {413: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("workers", [0, 1])
def test_codes(serve: Serve, tmp_path: Path, workers: int) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=workers))
    for status, name in CODES.items():
        assert code(server, f"refuse:{status}").name == name
        assert code(server, f"refuse:{status}", "other").name == "UNKNOWN"
    assert code(server, "refuse:404").name == "NOT_FOUND"


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="grpc_status"))
    assert code(server, "refuse:503").name == "UNKNOWN"
