"""Every request of a gRPC stream is answered, also with workers."""

from pathlib import Path

from client.local import LocalServer
from tests.support.probes import OTHER, OURS, message, repository, stub
from tests.support.servers import Serve

TOLD = ["echo:a", "echo:b", "echo:c"]


def answers(server: LocalServer, model: str) -> list[bytes]:
    stream = stub(server).ModelStreamInfer((message(told, model) for told in TOLD), timeout=30)
    return [response.outputs[0].contents.bytes_contents[0] for response in stream]


def test_all_are_answered(serve: Serve, tmp_path: Path) -> None:
    """Of another model, the first, as MLServer does."""
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=1))
    assert answers(server, "ours") == [b"a", b"b", b"c"]
    assert answers(server, "other") == [b"a"]


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=1, without="parallel_stream"))
    assert answers(server, "ours") == [b"a"]
