"""The two ways to an Open Inference Protocol server: REST and gRPC."""

import base64
import json
import numbers
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from client.pictures import (
    ArgumentError,
    ClientError,
    Picture,
    file_of,
    name_of,
    need,
    pixels_of,
)

Encoding = Literal["array", "image"]
ENCODINGS: tuple[Encoding, ...] = ("array", "image")

INPUT = "payload"
WITH_EMBEDDING = ("labels", "scores", "embedding")
"""The outputs asked for where the usual two are not all."""
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 5.0, 60.0
LONGEST_WAIT = 30.0
"""Seconds before another try, whatever the server's Retry-After says."""
MAX_MESSAGE = 64 * 2**20
"""Bytes; the lab's server takes in 48 MiB over gRPC, and says so."""


class ServerError(ClientError):
    """The server cannot be reached or has no such model: no picture would fare better."""


class Prediction(NamedTuple):
    """A label and its probability."""

    label: str
    score: float


class Answer(NamedTuple):
    """What the model says of a picture."""

    predictions: list[Prediction]
    embedding: list[float] | None = None
    """The features that the labels are told from, where they were asked for."""


class Transport(Protocol):
    """A connection to one model."""

    def facts(self) -> dict[str, Any]:
        """What the model's metadata tells in `parameters`; raises ServerError."""
        ...

    def classify(self, picture: Picture, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        """Best first; raises ClientError."""
        ...

    def ask(
        self, picture: Picture, top_k: int | None, encoding: Encoding, embedding: bool = False
    ) -> Answer:
        """The same, with the embedding where it is wanted; raises ClientError."""
        ...


def check_url(url: str) -> str:
    """The same address; raises ArgumentError for one that requests would not take."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(
            f"'{url}' is no address of a server; one begins with http:// or https://, "
            "as http://localhost:8080 does."
        )
    return url


def check_target(target: str) -> str:
    """The same gRPC target; raises ArgumentError for one with a scheme or without a port."""
    host, _, port = target.rpartition(":")
    if "//" in target or not host or not port.isdecimal():
        raise ArgumentError(
            f"'{target}' is no gRPC address; one is HOST:PORT without a scheme, "
            "as localhost:8081 is."
        )
    return target


def check_encoding(encoding: str) -> None:
    """Raises ArgumentError for another one than ENCODINGS."""
    if encoding not in ENCODINGS:
        raise ArgumentError(f"The encoding is 'array' or 'image', not {encoding!r}.")


def check_top_k(top_k: Any) -> int | None:
    """The same number as an int; raises ArgumentError for what is none, or less than 1."""
    if top_k is None:
        return None
    if isinstance(top_k, bool) or not isinstance(top_k, numbers.Integral) or int(top_k) < 1:
        raise ArgumentError(f"top_k is a whole number, 1 or more, not {top_k!r}.")
    return int(top_k)


def request_body(
    picture: Picture, top_k: int | None, encoding: Encoding, embedding: bool = False
) -> tuple[bytes, dict[str, str]]:
    """The inference request and its headers; raises ClientError.

    Pixels follow the JSON as they are (the binary tensor data extension): as JSON they would be
    four times as many bytes.
    """
    tensor: dict[str, Any]
    pixels, headers = b"", {"Content-Type": "application/json"}
    if encoding == "array":
        array = pixels_of(picture)
        pixels = array.tobytes()
        tensor = {"datatype": "UINT8", "shape": list(array.shape)}
        tensor["parameters"] = {"binary_data_size": len(pixels)}
    else:
        data = base64.b64encode(file_of(picture)).decode()
        tensor = {"datatype": "BYTES", "shape": [1], "data": [data]}
    content: dict[str, Any] = {"inputs": [{"name": INPUT, **tensor}]}
    if top_k:
        content["parameters"] = {"top_k": top_k}
    if embedding:
        content["outputs"] = [{"name": name} for name in WITH_EMBEDDING]
    head = json.dumps(content).encode()
    if pixels:
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }
    return head + pixels, headers


class Patience(Retry):
    """urllib3's Retry, but a server's Retry-After is honoured up to LONGEST_WAIT seconds only."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, LONGEST_WAIT)


class Rest:
    """Over HTTP, with retries on 503 and on connections that break, waiting longer each time.

    A connection that breaks while a request is on its way is tried once more even with `retries`
    0: servers close idle ones, and the next request may be on its way just then.
    """

    def __init__(self, url: str, model: str, retries: int = 5, connections: int = 1) -> None:
        self._base = f"{check_url(url).rstrip('/')}/v2/models/{model}"
        self._model = model
        self._url = url
        self._first = requests.Session()
        self._session = requests.Session()
        patience = Patience(
            total=max(retries, 1),
            connect=retries,
            read=max(retries, 1),
            status=retries,
            status_forcelist=[503],
            allowed_methods=None,  # POST too: the same picture has the same answer
            backoff_factor=0.2,
            backoff_jitter=0.2,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_maxsize=connections, max_retries=patience)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def facts(self) -> dict[str, Any]:
        answer = self._send(self._first, "GET", self._base)
        if answer.status_code == 404:
            raise ServerError(f"The server at {self._url} has no model '{self._model}'.")
        if not answer.ok:
            raise ServerError(
                f"The server at {self._url} does not tell what it serves: {_sentence(answer)}"
            )
        if not self._send(self._first, "GET", f"{self._base}/ready").ok:
            raise ServerError(
                f"The model '{self._model}' at {self._url} is not ready yet; try again in a moment."
            )
        try:
            return dict(answer.json().get("parameters") or {})
        except (ValueError, AttributeError):
            raise ServerError(f"What answers at {self._url} is no inference server.") from None

    def classify(self, picture: Picture, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        return self.ask(picture, top_k, encoding).predictions

    def ask(
        self, picture: Picture, top_k: int | None, encoding: Encoding, embedding: bool = False
    ) -> Answer:
        body, headers = request_body(picture, top_k, encoding, embedding)
        url = f"{self._base}/infer"
        answer = self._send(self._session, "POST", url, data=body, headers=headers)
        if not answer.ok:
            raise ClientError(f"{name_of(picture)}: {_sentence(answer)}")
        try:
            labels, scores, *rest = (output["data"] for output in answer.json()["outputs"])
            return Answer([Prediction(*pair) for pair in zip(labels, scores, strict=True)], *rest)
        except (ValueError, KeyError, TypeError):
            raise ServerError(
                f"The model '{self._model}' does not answer with labels and their scores."
            ) from None

    def _send(
        self, session: requests.Session, verb: str, url: str, **options: Any
    ) -> requests.Response:
        try:
            timeout = (CONNECT_TIMEOUT, ANSWER_TIMEOUT)
            return session.request(verb, url, timeout=timeout, **options)
        except requests.ConnectionError:
            raise ServerError(
                f"No server answers at {self._url}; is it running? (make serve)"
            ) from None
        except requests.Timeout:
            raise ClientError(f"The server at {self._url} took too long to answer.") from None
        except requests.RequestException as error:
            raise ServerError(f"'{self._url}' cannot be asked: {error}.") from None


def _sentence(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {answer.status_code}."


class Grpc:
    """Over gRPC, whose own retry policy sees to servers that are busy or restarting."""

    def __init__(self, target: str, model: str, retries: int = 5) -> None:
        """Raises ArgumentError where what it needs is not installed."""
        need("gRPC", "REST, without --grpc, does without it", "grpcio", "mlserver")
        import grpc
        from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

        policy = {
            "maxAttempts": min(5, retries + 1),  # gRPC allows no more
            "initialBackoff": "0.2s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config = {"methodConfig": [{"name": [{}], **({"retryPolicy": policy} if retries else {})}]}
        self._target, self._model = check_target(target), model
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.service_config", json.dumps(config)),
            ],
        )
        self._stub = GRPCInferenceServiceStub(self._channel)

    def facts(self) -> dict[str, Any]:
        import grpc
        from mlserver.grpc import dataplane_pb2 as pb
        from mlserver.grpc.converters import ModelMetadataResponseConverter

        self._check_connection()
        try:
            metadata = self._stub.ModelMetadata(
                pb.ModelMetadataRequest(name=self._model), timeout=ANSWER_TIMEOUT
            )
        except grpc.RpcError as error:
            raise ServerError(f"The server at {self._target} says: {error.details()}") from None
        parameters = ModelMetadataResponseConverter.to_types(metadata).parameters
        return parameters.model_dump() if parameters else {}

    def classify(self, picture: Picture, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        return self.ask(picture, top_k, encoding).predictions

    def ask(
        self, picture: Picture, top_k: int | None, encoding: Encoding, embedding: bool = False
    ) -> Answer:
        import grpc
        from mlserver.codecs import StringCodec
        from mlserver.grpc.converters import ModelInferResponseConverter

        try:
            answer = self._stub.ModelInfer(
                self._request(picture, top_k, encoding, embedding), timeout=ANSWER_TIMEOUT
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:  # busy, or down
                self._check_connection()
            raise ClientError(f"{name_of(picture)}: {error.details()}") from None
        labels, scores, *rest = ModelInferResponseConverter.to_types(answer).outputs
        pairs = zip(StringCodec.decode_output(labels), scores.data, strict=True)
        return Answer([Prediction(*pair) for pair in pairs], *(list(one.data) for one in rest))

    def _check_connection(self) -> None:
        """Raises ServerError where there is none in time."""
        import grpc

        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_TIMEOUT)
        except grpc.FutureTimeoutError:
            raise ServerError(
                f"No gRPC server answers at {self._target}; is it running? (make serve)"
            ) from None

    def _request(
        self, picture: Picture, top_k: int | None, encoding: Encoding, embedding: bool
    ) -> Any:
        from mlserver.grpc import dataplane_pb2 as pb

        request = pb.ModelInferRequest(model_name=self._model)
        if encoding == "array":
            array = pixels_of(picture)
            request.inputs.add(name=INPUT, datatype="UINT8", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())  # as numbers it would be twice that
        else:
            contents = pb.InferTensorContents(bytes_contents=[file_of(picture)])
            request.inputs.add(name=INPUT, datatype="BYTES", shape=[1], contents=contents)
        if top_k:
            request.parameters["top_k"].int64_param = top_k
        for name in WITH_EMBEDDING if embedding else ():
            request.outputs.add(name=name)
        return request
