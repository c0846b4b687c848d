"""A model of somebody else's notices nothing of ours in the same server.

Each test looks at a server with the neighbour alone, on plain MLServer, and at one with both.
"""

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer, serving
from tests.support.clients import assert_sane
from tests.support.paths import ROOT
from tests.support.servers import add_hook, write_settings

pytestmark = pytest.mark.slow

NEIGHBOUR = Path(__file__).with_name("neighbour")
BATCH = 8
LARGE = 65 * 2**20
VOLATILE = {"date", "content-length", "server"}


@dataclass(frozen=True)
class Street:
    """A server with the neighbour, and the folder that both know."""

    server: LocalServer
    folder: Path

    @property
    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def gate(self, name: str) -> Path:
        return self.folder / name


Both = tuple[Street, Street]


def repository(folder: Path, workers: int, with_ours: bool) -> Path:
    root = folder / "repository"
    root.mkdir()
    (add_hook if with_ours else write_settings)(root, parallel_workers=workers, debug=False)
    for name, batching in (
        ("batched", {"max_batch_size": BATCH, "max_batch_time": 3}),
        ("single", {}),
    ):
        shutil.copytree(NEIGHBOUR, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        settings = {
            "name": name,
            "implementation": "neighbour.Neighbour",
            "parameters": {"extra": {"notes": str(folder / "notes")}},
            **batching,
        }
        (root / name / "model-settings.json").write_text(json.dumps(settings))
    if with_ours:
        shutil.copytree(
            ROOT / "tinyvit", root / "tinyvit", ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


@pytest.fixture(scope="module", params=[0, 2])
def both(
    request: pytest.FixtureRequest,
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Both]:
    """The neighbour alone, and beside ours."""
    with ExitStack() as stack:

        def street(with_ours: bool) -> Street:
            folder = tmp_path_factory.mktemp("beside" if with_ours else "alone")
            server = serving(
                repository(folder, request.param, with_ours),
                env={**environment, "MLSERVER_METRICS_DIR": str(folder / "metrics")},
                log=folder / "log",
                cwd=folder,
                timeout=300,  # with ours comes the conversion of the checkpoint
            )
            return Street(stack.enter_context(server), folder)

        yield street(False), street(True)


def same(both: Both, look: Callable[[Street], Any]) -> Any:
    """What is seen in both, which is the same."""
    alone, beside = [look(street) for street in both]
    assert beside == alone
    return alone


def until(happened: Callable[[], Any], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not happened():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.01)


def told(text: str) -> dict[str, Any]:
    return {"inputs": [{"name": "told", "shape": [1], "datatype": "BYTES", "data": [text]}]}


def row(number: int) -> dict[str, Any]:
    data = [number, number]
    return {"inputs": [{"name": "row", "shape": [1, 2], "datatype": "FP32", "data": data}]}


def post(street: Street, path: str, **options: Any) -> requests.Response:
    return requests.post(f"{street.server.url}/v2/{path}", timeout=60, **options)


def tell(street: Street, text: str) -> requests.Response:
    return post(street, "models/single/infer", json={"id": "one", **told(text)})


def seen(response: requests.Response) -> tuple[int, dict[str, str], str]:
    """All of a response that is not of the moment."""
    headers = {k.lower(): v for k, v in response.headers.items() if k.lower() not in VOLATILE}
    return response.status_code, headers, response.text


def stub(street: Street) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(grpc.insecure_channel(street.server.grpc))


def message(text: str) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="told",
        shape=[1],
        datatype="BYTES",
        contents=pb.InferTensorContents(bytes_contents=[text.encode()]),
    )
    return pb.ModelInferRequest(model_name="single", id="one", inputs=[tensor])


def test_ours_answers_beside_it(both: Both) -> None:
    assert_sane(both[1].server)


def test_answers_and_headers(both: Both) -> None:
    status, headers, text = same(both, lambda street: seen(tell(street, "echo:x")))
    assert (status, headers["x-neighbour"]) == (200, "hello")
    assert json.loads(text)["outputs"][0]["data"] == ["x"]


ODD_REQUESTS: dict[str, Callable[[Street], requests.Response]] = {
    "no JSON": lambda street: post(street, "models/single/infer", data=b"{"),
    "no inputs": lambda street: post(street, "models/single/infer", json={}),
    "wrong types": lambda street: post(street, "models/single/infer", json={"inputs": [1, {}]}),
    "no such model": lambda street: post(street, "models/nobody/infer", json=told("echo:x")),
    "no such version": lambda street: post(
        street, "models/single/versions/7/infer", json=told("echo:x")
    ),
    "no such route": lambda street: post(street, "models/single/classify", data=b"x"),
    "wrong method": lambda street: requests.get(
        f"{street.server.url}/v2/models/single/infer", timeout=60
    ),
    "broken gzip": lambda street: post(
        street, "models/single/infer", data=b"x", headers={"Content-Encoding": "gzip"}
    ),
    "metadata": lambda street: requests.get(f"{street.server.url}/v2/models/single", timeout=60),
    "readiness": lambda street: requests.get(
        f"{street.server.url}/v2/models/single/ready", timeout=60
    ),
    "custom handler": lambda street: requests.get(
        f"{street.server.url}/neighbour/hello", timeout=60
    ),
}


@pytest.mark.parametrize("kind", ODD_REQUESTS)
def test_other_requests(both: Both, kind: str) -> None:
    same(both, lambda street: seen(ODD_REQUESTS[kind](street)))


def test_invalid_json_is_422(both: Both) -> None:
    assert ODD_REQUESTS["no JSON"](both[1]).status_code == 422


@pytest.mark.parametrize("text", ["refuse:400", "refuse:418", "refuse:503", "crash"])
def test_errors(both: Both, text: str) -> None:
    """Over REST and gRPC, with status and text; what is logged has the same traceback."""

    def look(street: Street) -> Any:
        start = len(street.server.output())
        rest = seen(tell(street, text))
        with pytest.raises(grpc.RpcError) as failure:
            stub(street).ModelInfer(message(text), timeout=60)
        until(lambda: "Traceback" in street.server.output()[start:])
        until(lambda: _is_quiet(street))
        remote = failure.value.code(), failure.value.details()
        return rest, remote, tracebacks(street.server.output()[start:])

    rest, _, logged = same(both, look)
    assert rest[0] == (500 if text == "crash" else int(text[-3:]))
    assert any("neighbour.py" in frame for frame in logged), logged
    if text == "crash":  # in the server itself, or in a worker
        in_worker = '{"error":"builtins.RuntimeError: no such kernel"}'
        assert rest[2] in ("Internal Server Error", in_worker)


def _is_quiet(street: Street) -> bool:
    before = street.server.output()
    time.sleep(0.3)
    return street.server.output() == before


def tracebacks(output: str) -> list[str]:
    """Where and what, line by line, without the frames of middleware of ours."""
    frames = re.findall(r'File "([^"]+)", line \d+, in (\w+)|^(\w[\w.]*Error: .*)$', output, re.M)
    lines = [f"{Path(file).name} {function}{error}" for file, function, error in frames]
    return sorted(
        line for line, frame in zip(lines, frames, strict=True) if "mlserver_timm" not in frame[0]
    )


def test_batches_are_merged(both: Both) -> None:
    def look(street: Street) -> Any:
        before = len(street.notes)
        with ThreadPoolExecutor(BATCH) as pool:
            answers = pool.map(
                lambda i: post(street, "models/batched/infer", json=row(i)).json(), range(BATCH)
            )
        sums = [answer["outputs"][0]["data"] for answer in answers]
        return sums, street.notes[before:]

    sums, notes = same(both, look)
    assert sums == [[2.0 * i] for i in range(BATCH)]
    assert notes == [f"shape [{BATCH}, 2]"]


def test_client_that_hangs_up_costs_nobody_an_answer(both: Both) -> None:
    """Its row is in the batch with those of the others."""

    def look(street: Street) -> Any:
        data = json.dumps(row(100)).encode()
        head = "POST /v2/models/batched/infer HTTP/1.1\r\nHost: x\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", street.server.http_port), 10) as connection:
            connection.sendall(head.encode() + data)
            with ThreadPoolExecutor(BATCH) as pool:
                others = [
                    pool.submit(post, street, "models/batched/infer", json=row(i))
                    for i in range(BATCH - 2)
                ]
                time.sleep(0.5)  # all are in the queue, and one is missing for a batch
                connection.close()
                time.sleep(0.2)
                last = pool.submit(post, street, "models/batched/infer", json=row(BATCH))
                return [answer.result().json()["outputs"][0]["data"] for answer in [*others, last]]

    assert same(both, look) == [[2.0 * i] for i in (*range(BATCH - 2), BATCH)]


def test_work_goes_on_for_a_client_that_hung_up(both: Both) -> None:
    def look(street: Street) -> Any:
        before = len(street.notes)
        gate = street.gate("hung-up")
        data = json.dumps(told(f"wait:{gate}")).encode()
        head = "POST /v2/models/single/infer HTTP/1.1\r\nHost: x\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", street.server.http_port), 10) as connection:
            connection.sendall(head.encode() + data)
            until(lambda: "begun" in street.notes[before:])
        assert tell(street, "echo:x").ok  # by now the server knows
        gate.touch()
        until(lambda: len(street.notes) == before + 2)
        return street.notes[before:]

    assert same(both, look) == ["begun", "finished"]


def test_rest_stream_comes_piece_by_piece(both: Both) -> None:
    """The model makes the second piece once the client has the first; with workers there is one."""

    def look(street: Street) -> Any:
        gate = street.gate("rest-stream")
        response = post(
            street, "models/single/infer_stream", json=told(f"pieces:{gate}"), stream=True
        )
        lines = (line for line in response.iter_lines() if line)
        pieces = [next(lines)]
        gate.touch()
        pieces += lines
        texts = [json.loads(piece[len("data: ") :])["outputs"][0]["data"] for piece in pieces]
        return response.status_code, response.headers["content-type"], texts

    status, _, texts = same(both, look)
    assert status == 200
    assert texts in ([["pieces 1"], ["pieces 2"]], [["in one"]])


def test_grpc_stream_comes_piece_by_piece(both: Both) -> None:
    """Each side waits for the other's piece."""

    def look(street: Street) -> Any:
        gates = [street.gate(f"grpc-stream-{i}") for i in range(2)]
        has_first = threading.Event()

        def requests() -> Iterator[pb.ModelInferRequest]:
            yield message(f"pieces:{gates[0]}")
            assert has_first.wait(30)
            yield message(f"pieces:{gates[1]}")

        pieces = []
        for piece in stub(street).ModelStreamInfer(requests(), timeout=60):
            pieces.append(piece.outputs[0].contents.bytes_contents[0])
            has_first.set()
            if len(pieces) % 2:
                gates[len(pieces) // 2].touch()
        return pieces

    assert same(both, look) in ([b"pieces 1", b"pieces 2"] * 2, [b"in one"])


def test_body_may_be_large(both: Both) -> None:
    _, _, text = same(both, lambda street: seen(tell(street, "size:" + "x" * LARGE)))
    assert json.loads(text)["outputs"][0]["data"] == [str(LARGE)]


def test_log_lines(both: Both) -> None:
    def look(street: Street) -> Any:
        start = len(street.server.output())
        assert tell(street, "echo:logged").ok
        until(lambda: "echo:logged" in street.server.output()[start:])
        lines = street.server.output()[start:].splitlines()
        return [line.split(" ", 2)[2] for line in lines if "echo:logged" in line]

    assert same(both, look) == ["[mlserver][single] INFO - told echo:logged"]


def test_metrics(both: Both) -> None:
    """What has been counted for the neighbour so far, by name, label and value."""

    def look(street: Street) -> Any:
        lines = requests.get(street.server.metrics, timeout=30).text.splitlines()
        of_time = re.compile(r"seconds|duration|_created|_sum|_bucket")
        return sorted(
            line
            for line in lines
            if re.search(r'^neighbour_|="(single|batched)"|/models/(single|batched)/', line)
            and not of_time.search(line)
        )

    counted = same(both, look)
    assert any(line.startswith("neighbour_requests_total") for line in counted)
    names = [
        {
            line.split()[2]
            for line in requests.get(street.server.metrics, timeout=30).text.splitlines()
            if line.startswith("# TYPE") and not line.split()[2].startswith("tinyvit_")
        }
        for street in both
    ]
    assert names[0] == names[1]


def test_reload(both: Both) -> None:
    def look(street: Street) -> Any:
        statuses = [
            post(street, "repository/models/single/unload").status_code,
            tell(street, "echo:x").status_code,
            post(street, "repository/models/single/load").status_code,
            tell(street, "echo:x").status_code,
        ]
        index = post(street, "repository/index", json={}).json()
        return statuses, sorted(str(item) for item in index if item["name"] != "tinyvit")

    assert same(both, look)[0] == [200, 404, 200, 200]
