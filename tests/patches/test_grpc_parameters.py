"""Parameters that the protocol reserves are the client's fault over gRPC too, in a sentence."""

from pathlib import Path

import grpc
import pytest

from client.local import LocalServer
from tests.support.probes import OTHER, OURS, message, repository, stub
from tests.support.servers import Serve


def failure(server: LocalServer, model: str, parameter: str) -> tuple[str, str]:
    """Code and text for a number where text belongs."""
    request = message("echo:x", model)
    request.parameters[parameter].int64_param = 1
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(request, timeout=30)
    return failure.value.code().name, failure.value.details()


@pytest.mark.parametrize("parameter", ["content_type", "headers"])
def test_sentence_for_our_model(serve: Serve, tmp_path: Path, parameter: str) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER))
    code, text = failure(server, "ours", parameter)
    assert code == "INVALID_ARGUMENT" and parameter in text and "pydantic" not in text
    assert failure(server, "other", parameter)[0] == "INTERNAL"


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="grpc_parameters"))
    assert failure(server, "ours", "content_type")[0] == "INTERNAL"
