"""Large images and messages do not end a small container: one OOM kill ends all of it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from PIL import Image

from benchmarks.networks import TINYVIT
from tests.support.client_threads import ClientThreads
from tests.support.clients import encoded, message, until
from tests.support.containers import CONFINED, Container
from tests.support.docker_engine import Engine
from tests.support.resource_monitor import MEGABYTE
from tests.support.traffic import IMAGE

ANSWERS = 500
"""Large requests that are answered or refused before the test ends."""


class LargeRequests(ClientThreads):
    """Clients with 25 MB of PNG over REST and with messages of two sizes over gRPC."""

    def __init__(self, container: Container, rest: int, grpc_clients: int) -> None:
        super().__init__([self._rest] * rest + [self._grpc] * grpc_clients)
        self._container = container
        noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
        self._png = encoded(Image.fromarray(noise >> 2), "PNG", compress_level=1)
        assert len(self._png) > 25 * MEGABYTE
        self.outcomes: Counter[int | str] = Counter()

    def _rest(self) -> None:
        url = f"{self._container.url}/v2/models/tinyvit/classify"
        with requests.Session() as session:
            while not self.ended.is_set():
                self._count(lambda: session.post(url, data=self._png, timeout=60).status_code)

    def _grpc(self) -> None:
        address = f"127.0.0.1:{self._container.ports[1]}"
        options = [("grpc.max_send_message_length", -1)]
        images = [_images(45), _images(15)]
        with grpc.insecure_channel(address, options) as channel:
            stub = GRPCInferenceServiceStub(channel)
            while not self.ended.is_set():
                for each in images:
                    self._count(lambda each=each: _outcome(stub, each))

    def _count(self, send: Callable[[], int | str]) -> None:
        try:
            self.outcomes[send()] += 1
        except requests.RequestException as error:
            self.outcomes[type(error).__name__] += 1


def _images(megabytes: int) -> pb.ModelInferRequest:
    """Return a message with black images of 3 MB each."""
    shape = [megabytes // 3, 1024, 1024, 3]
    return message(shape, "UINT8", raw=[bytes(megabytes * MEGABYTE)])


def _outcome(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> str:
    try:
        stub.ModelInfer(request, timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.fixture(scope="module")
def tinyvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported full-size network, readable for the container's user."""
    folder = TINYVIT.exported(tmp_path_factory.mktemp("exports"))
    for path in (folder, *folder.parents[:3], *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.mark.parametrize(
    ("memory", "is_full_size", "rest", "grpc_clients"),
    [("512m", False, 8, 0), ("1g", True, 12, 6)],
    ids=["512m-sample", "1g-tinyvit"],
)
def test_large_requests_do_not_end_the_container(
    engine: Engine,
    image: str,
    tinyvit: Path,
    memory: str,
    is_full_size: bool,
    rest: int,
    grpc_clients: int,
) -> None:
    limits = ("--memory", memory, "--memory-swap", memory, "--cpus", "2")
    options = (*CONFINED[: CONFINED.index("--memory")], *limits)
    if is_full_size:
        options += ("-v", f"{tinyvit}:/export:ro", "-e", "MLSERVER_MODEL_URI=/export")
    with Container(engine, image, options) as container:
        container.wait()
        url = f"{container.url}/v2/models/tinyvit/classify"
        expected = requests.post(url, data=IMAGE, timeout=60).json()
        with LargeRequests(container, rest, grpc_clients) as load:
            until(lambda: sum(load.outcomes.values()) >= ANSWERS, 300)
        print(load.outcomes)
        assert container.inspect("{{.State.OOMKilled}} {{.RestartCount}}") == "false 0"
        assert set(load.outcomes) <= {
            *(200, 400, 503, 504),
            *("OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
        }
        assert requests.post(url, data=IMAGE, timeout=60).json() == expected
