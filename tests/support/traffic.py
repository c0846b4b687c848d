"""Load through nginx: clients with keep-alive connections, answers counted by status and label."""

from collections import Counter

import grpc
import requests
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.support.client_threads import ClientThreads
from tests.support.clients import COFFEE, LABEL, body, labels, message, tensor, until

__all__ = ["IMAGE", "LABEL", "GrpcLoad", "Load"]

IMAGE = COFFEE.read_bytes()
BODY = body(tensor(IMAGE))

RETRY_ONCE = Retry(total=1, read=1, connect=0, status=0, allowed_methods=None, backoff_factor=0)
"""nginx may close a kept connection at a reload while the next request is on its way (RFC 9112,
section 9.3.1). Answers, also with status 502, are not repeated."""


class Load(ClientThreads):
    """Counts the answers by status, and the labels among them, until the block ends."""

    def __init__(self, url: str, clients: int = 4) -> None:
        super().__init__([self._run] * clients)
        self._url = f"{url}/v2/models/tinyvit"
        self.statuses: Counter[int | str] = Counter()
        self.labels: Counter[str] = Counter()

    def more(self, count: int) -> None:
        """Wait for `count` further answers."""
        goal = sum(self.statuses.values()) + count
        until(lambda: sum(self.statuses.values()) >= goal)

    def _run(self) -> None:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=RETRY_ONCE))
            while not self.ended.is_set():
                self._send(session, "classify", data=IMAGE)
                self._send(session, "infer", json=BODY)

    def _send(self, session: requests.Session, route: str, **content: object) -> None:
        try:
            response = session.post(f"{self._url}/{route}", timeout=30, **content)
        except requests.RequestException as error:
            self.statuses[repr(error)] += 1
            return
        self.statuses[response.status_code] += 1
        if response.ok:
            self.labels[labels(response)[0]] += 1


class GrpcLoad(Load):
    """The same over gRPC, to the address of a port; statuses are names of codes."""

    def __init__(self, address: str, clients: int = 4) -> None:
        super().__init__(address, clients)
        self._address = address
        self.errors: set[str] = set()

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            while not self.ended.is_set():
                try:
                    answer = stub.ModelInfer(message(bytes_contents=[IMAGE]), timeout=30)
                except grpc.RpcError as error:
                    self.statuses[error.code().name] += 1
                    self.errors.add(error.details())
                    continue
                self.statuses["OK"] += 1
                self.labels[answer.outputs[0].contents.bytes_contents[0].decode()] += 1
