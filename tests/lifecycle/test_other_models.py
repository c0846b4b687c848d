"""A model of another runtime behaves the same with and without a timm model in its server.

Each test compares plain MLServer, which serves the other model alone, with a server of both.
"""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb

from client.local import LocalServer, serving
from tests.support import clients
from tests.support.clients import assert_sane, body, stub, tensor, until
from tests.support.folders import copy_runtime
from tests.support.servers import add_hook, write_model, write_settings

pytestmark = pytest.mark.slow

OTHER_MODEL = Path(__file__).with_name("other_model")
BATCH = 8
LARGE = 65 * 2**20
"""Bytes; more than the timm model accepts in a request."""

VOLATILE = {"date", "content-length", "server"}
"""Headers that differ from response to response."""

Servers = tuple[LocalServer, LocalServer]
"""The other model alone, and with a timm model."""


def repository(folder: Path, workers: int, with_timm: bool) -> Path:
    """Return a repository with the other model twice: with MLServer's batching and without."""
    root = folder / "repository"
    root.mkdir()
    (add_hook if with_timm else write_settings)(root, parallel_workers=workers, debug=False)
    batching = {"max_batch_size": BATCH, "max_batch_time": 3}
    for name, settings in (("batched", batching), ("single", {})):
        shutil.copytree(OTHER_MODEL, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        write_model(root / name, name, "other_model.OtherModel", **settings)
    if with_timm:
        copy_runtime(root)
    return root


@pytest.fixture(scope="module", params=[0, 2], ids=["no workers", "2 workers"])
def servers(
    request: pytest.FixtureRequest,
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Servers]:
    with ExitStack() as stack:

        def start(with_timm: bool) -> LocalServer:
            folder = tmp_path_factory.mktemp("both" if with_timm else "alone")
            server = serving(
                repository(folder, request.param, with_timm),
                env={**environment, "MLSERVER_METRICS_DIR": str(folder / "metrics")},
                log=folder / "log",
                cwd=folder,
                timeout=300,  # includes the conversion of the sample checkpoint
            )
            return stack.enter_context(server)

        yield start(False), start(True)


def same(servers: Servers, look: Callable[[LocalServer], Any]) -> Any:
    """Assert that both servers show the same, and return it."""
    alone, both = [look(server) for server in servers]
    assert both == alone
    return alone


def text_input(text: str) -> dict[str, Any]:
    return body(tensor([text], name="text"))


def row(number: int) -> dict[str, Any]:
    return body(tensor([number, number], [1, 2], "FP32", name="row"))


def post(server: LocalServer, path: str, **options: Any) -> requests.Response:
    return requests.post(f"{server.url}/v2/{path}", timeout=60, **options)


def get(server: LocalServer, path: str) -> requests.Response:
    return requests.get(f"{server.url}/{path}", timeout=60)


def run(server: LocalServer, command: str) -> requests.Response:
    return post(server, "models/single/infer", json={"id": "one", **text_input(command)})


def stable(response: requests.Response) -> tuple[int, dict[str, str], str]:
    """Return status, headers and body, without what differs each time."""
    headers = {k.lower(): v for k, v in response.headers.items() if k.lower() not in VOLATILE}
    return response.status_code, headers, response.text


def message(command: str) -> pb.ModelInferRequest:
    contents = {"bytes_contents": [command.encode()]}
    return clients.message(name="text", identifier="one", model="single", **contents)


def test_timm_model_answers(servers: Servers) -> None:
    assert_sane(servers[1])


REQUESTS: dict[str, tuple[int, Callable[[LocalServer], requests.Response]]] = {
    "valid": (200, lambda server: run(server, "echo:x")),
    "large body": (200, lambda server: run(server, "size:" + "x" * LARGE)),
    "invalid JSON": (422, lambda server: post(server, "models/single/infer", data=b"{")),
    "no inputs": (422, lambda server: post(server, "models/single/infer", json={})),
    "unknown model": (404, lambda server: post(server, "models/no/infer", json=row(1))),
    "unknown version": (
        404,
        lambda server: post(server, "models/single/versions/7/infer", json=row(1)),
    ),
    "unknown route": (404, lambda server: post(server, "models/single/classify", data=b"x")),
    "wrong method": (405, lambda server: get(server, "v2/models/single/infer")),
    "metadata": (200, lambda server: get(server, "v2/models/single")),
    "readiness": (200, lambda server: get(server, "v2/models/single/ready")),
    "custom handler": (200, lambda server: get(server, "other/hello")),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_responses(servers: Servers, kind: str) -> None:
    """Status, headers and body."""
    expected, send = REQUESTS[kind]
    status, headers, text = same(servers, lambda server: stable(send(server)))
    assert status == expected, text
    if kind == "valid":
        assert headers["x-other"] == "hello"
        assert json.loads(text)["outputs"][0]["data"] == ["x"]


@pytest.mark.parametrize("command", ["refuse:400", "refuse:418", "refuse:503", "crash"])
def test_errors(servers: Servers, command: str) -> None:
    """Status and text over REST and gRPC, and the traceback in the log."""

    def look(server: LocalServer) -> Any:
        start = len(server.output())
        rest = stable(run(server, command))
        with pytest.raises(grpc.RpcError) as failure:
            stub(server).ModelInfer(message(command), timeout=60)
        until(lambda: "in " + command.partition(":")[0] in server.output()[start:])
        return rest, failure.value.code(), failure.value.details()

    (status, _, text), *_ = same(servers, look)
    assert status == (500 if command == "crash" else int(command[-3:])), text


def test_batches_are_merged(servers: Servers) -> None:
    def look(server: LocalServer) -> list[list[float]]:
        with ThreadPoolExecutor(BATCH) as pool:
            sent = [
                pool.submit(post, server, "models/batched/infer", json=row(i)) for i in range(BATCH)
            ]
        return [future.result().json()["outputs"][0]["data"] for future in sent]

    assert same(servers, look) == [[2.0 * i, BATCH] for i in range(BATCH)]


def test_rest_stream_is_sent_in_pieces(servers: Servers) -> None:
    """The model makes the second piece once the client has the first; with workers, it is one."""

    def look(server: LocalServer) -> Any:
        gate = server.log.with_name("rest-stream")
        asked = text_input(f"pieces:{gate}")
        response = post(server, "models/single/infer_stream", json=asked, stream=True)
        lines = (line for line in response.iter_lines() if line)
        pieces = [next(lines)]
        gate.touch()
        pieces += lines
        return [json.loads(piece[len("data: ") :])["outputs"][0]["data"] for piece in pieces]

    assert same(servers, look) in ([["pieces 1"], ["pieces 2"]], [["in one"]])


def test_grpc_stream_is_sent_in_pieces(servers: Servers) -> None:
    """Each side waits for a piece of the other."""

    def look(server: LocalServer) -> list[bytes]:
        gates = [server.log.with_name(f"grpc-stream-{i}") for i in range(2)]
        has_first = threading.Event()

        def messages() -> Iterator[pb.ModelInferRequest]:
            yield message(f"pieces:{gates[0]}")
            assert has_first.wait(30)
            yield message(f"pieces:{gates[1]}")

        pieces = []
        for piece in stub(server).ModelStreamInfer(messages(), timeout=60):
            pieces.append(piece.outputs[0].contents.bytes_contents[0])
            has_first.set()
            if len(pieces) % 2:
                gates[len(pieces) // 2].touch()
        return pieces

    assert same(servers, look) in ([b"pieces 1", b"pieces 2"] * 2, [b"in one"])


def test_metrics(servers: Servers) -> None:
    """The names of all metrics, and the counts of the other model.

    Failed gRPC calls are counted here and not by MLServer, and a version that no model has is not.
    """

    def look(server: LocalServer) -> tuple[list[str], ...]:
        assert run(server, "echo:x").ok
        lines = requests.get(server.metrics, timeout=30).text.splitlines()
        names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
        of_time = re.compile(r"seconds|duration|_created|_sum|_bucket")
        of_model = re.compile(r'^other_|="(single|batched)"|/models/(single|batched)/')
        differs = re.compile(r'^(tinyvit_|grpc_server_handled_(total|created))|version="7"')
        counts = [line for line in lines if of_model.search(line) and not of_time.search(line)]
        return tuple(
            sorted(each for each in group if not differs.search(each)) for group in (names, counts)
        )

    _, counts = same(servers, look)
    assert any(line.startswith("other_requests_total") for line in counts)


def test_reload(servers: Servers) -> None:
    def look(server: LocalServer) -> Any:
        statuses = [
            post(server, "repository/models/single/unload").status_code,
            run(server, "echo:x").status_code,
            post(server, "repository/models/single/load").status_code,
            run(server, "echo:x").status_code,
        ]
        index = post(server, "repository/index", json={}).json()
        return statuses, sorted(str(item) for item in index if item["name"] != "tinyvit")

    assert same(servers, look)[0] == [200, 404, 200, 200]
