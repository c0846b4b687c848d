"""REST and gRPC connections to one model on an Open Inference Protocol server."""

import json
import numbers
import re
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from client.images import ArgumentError, ClientError, ImageSource, describe, read_file, read_pixels

Encoding = Literal["array", "image"]
CONNECT_TIMEOUT, RESPONSE_TIMEOUT = 5.0, 60.0  # seconds
MAX_INT64 = 2**63 - 1  # gRPC's largest parameter
MAX_RETRY_AFTER = 30  # seconds between two attempts, whatever the server's Retry-After says


class ServerError(ClientError):
    """The server is unreachable or has no such model: every other image would fail, too."""


class Prediction(NamedTuple):
    """A label and its probability."""

    label: str
    score: float


class Answer(NamedTuple):
    """The predictions for an image, best first, and its embedding if requested."""

    predictions: list[Prediction]
    embedding: list[float] | None = None


class Transport(ABC):
    """A connection to one model; subclasses send over REST or gRPC."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return `parameters` of the model's metadata; raises ServerError if it is not ready."""

    @abstractmethod
    def _infer(self, name: str, request: dict[str, Any], data: bytes) -> list[list[Any]]:
        """Return the data of each output; raises ClientError that begins with `name`."""

    def ask(
        self, image: ImageSource, top_k: int | None, encoding: Encoding, embedding: bool = False
    ) -> Answer:
        """Return the answer for one image; raises ClientError.

        Without `top_k` the request does not contain it, and the server's default applies.
        """
        if encoding not in get_args(Encoding):
            raise ArgumentError(f"Unknown encoding {encoding!r}: use 'array' or 'image'.")
        is_integer = isinstance(top_k, numbers.Integral) and not isinstance(top_k, bool)
        if top_k is not None and not (is_integer and top_k >= 1):
            raise ArgumentError(f"Invalid top_k {top_k!r}: expected an integer of at least 1.")
        if encoding == "array":
            pixels = read_pixels(image)
            datatype, shape, data = "UINT8", list(pixels.shape), pixels.tobytes()
        else:
            file = read_file(image)
            datatype, shape, data = "BYTES", [1], len(file).to_bytes(4, "little") + file
        request: dict[str, Any] = {}
        request["inputs"] = [{"name": "payload", "datatype": datatype, "shape": shape}]
        if top_k is not None:
            request["parameters"] = {"top_k": min(int(top_k), MAX_INT64)}
        if embedding:
            request["outputs"] = [{"name": name} for name in ("labels", "scores", "embedding")]
        try:
            labels, scores, *rest = self._infer(describe(image), request, data)
            return Answer([Prediction(*pair) for pair in zip(labels, scores, strict=True)], *rest)
        except (ValueError, KeyError, TypeError):
            raise ServerError(
                "The model does not return labels and scores: name an image classifier."
            ) from None


class Rest(Transport):
    """Send over HTTP; retry on 503 and lost connections, with increasing delays.

    A connection that is lost during a request is retried once even if `retries` is 0: the server
    may close an idle connection at the moment at which the client reuses it.
    """

    def __init__(self, url: str, model: str, retries: int = 5, connections: int = 1) -> None:
        if not re.match(r"https?://[\w\[]", url, re.IGNORECASE):
            expected = "expected http:// or https://, e.g. http://localhost:8080"
            raise ArgumentError(f"Invalid server URL '{url}': {expected}.")
        self._base = f"{url.rstrip('/')}/v2/models/{quote(model, safe='/')}"
        retry = Retry(
            total=max(retries, 1),
            connect=retries,
            read=max(retries, 1),
            status=retries,
            status_forcelist=[503],
            allowed_methods=None,  # POST, too: inference has no side effects
            backoff_factor=0.2,
            backoff_jitter=0.2,
            raise_on_status=False,
            retry_after_max=MAX_RETRY_AFTER,
        )
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=connections, max_retries=retry)
        self._session.mount(f"{self._base}/infer", adapter)

    def facts(self) -> dict[str, Any]:
        for path in ("/ready", ""):
            response = self._send("GET", path)
            if not response.ok:
                raise ServerError(f"{self._base} is not ready: {_error(response)}")
        try:
            return dict(response.json().get("parameters") or {})
        except (ValueError, AttributeError):
            raise ServerError(
                f"No inference server at {self._base}: the response is not metadata in JSON."
            ) from None

    def _infer(self, name: str, request: dict[str, Any], data: bytes) -> list[list[Any]]:
        request["inputs"][0]["parameters"] = {"binary_data_size": len(data)}
        head = json.dumps(request).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        response = self._send("POST", "/infer", data=head + data, headers=headers)
        if not response.ok:
            raise ClientError(f"{name}: {_error(response)}")
        return [output["data"] for output in response.json()["outputs"]]

    def _send(self, verb: str, path: str, **options: Any) -> requests.Response:
        timeout = (CONNECT_TIMEOUT, RESPONSE_TIMEOUT)
        try:
            return self._session.request(verb, self._base + path, timeout=timeout, **options)
        except (requests.RequestException, HTTPError) as error:
            reason = type(error).__name__
            raise ServerError(f"No server answers at {self._base}: {reason}.") from None


def _error(response: requests.Response) -> str:
    """Return the server's own error text, or the start of its body if that is not JSON."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(response.text.split())[:200] or response.reason
        return f"status {response.status_code}: {text}"


class Grpc(Transport):
    """Send over gRPC, with gRPC's own retry policy."""

    def __init__(self, target: str, model: str, retries: int = 5) -> None:
        import grpc  # here, because REST requires neither
        from mlserver.grpc import dataplane_pb2
        from mlserver.grpc.converters import ModelInferResponseConverter as Converter
        from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

        policy = {
            "maxAttempts": min(5, retries + 1),  # gRPC's maximum
            "initialBackoff": "0.2s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config = {"methodConfig": [{"name": [{}], **({"retryPolicy": policy} if retries else {})}]}
        if not re.fullmatch(r"[^/]+:\d+", target):
            expected = "expected HOST:PORT, e.g. localhost:8081"
            raise ArgumentError(f"Invalid gRPC target '{target}': {expected}.")
        self._target, self._model = target, model
        self._grpc, self._messages, self._converter = grpc, dataplane_pb2, Converter
        options = [("grpc.service_config", json.dumps(config))]
        self._channel = grpc.insecure_channel(target, options)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def facts(self) -> dict[str, Any]:
        self._check_connection()
        request = self._messages.ModelMetadataRequest(name=self._model)
        try:
            metadata = self._stub.ModelMetadata(request, timeout=RESPONSE_TIMEOUT)
        except self._grpc.RpcError as error:
            raise ServerError(f"No metadata from {self._target}: {error.details()}") from None
        choice = "parameter_choice"
        return {name: getattr(p, p.WhichOneof(choice)) for name, p in metadata.parameters.items()}

    def _infer(self, name: str, request: dict[str, Any], data: bytes) -> list[list[Any]]:
        parameters = request.pop("parameters", {}).items()
        message = self._messages.ModelInferRequest(model_name=self._model, **request)
        message.raw_input_contents.append(data)
        for parameter, value in parameters:
            message.parameters[parameter].int64_param = value
        try:
            response = self._stub.ModelInfer(message, timeout=RESPONSE_TIMEOUT)
        except self._grpc.RpcError as error:
            if error.code() == self._grpc.StatusCode.UNAVAILABLE:  # busy or down
                self._check_connection()
            raise ClientError(f"{name}: {error.details()}") from None
        outputs = self._converter.to_types(response).outputs
        return [[v.decode() if isinstance(v, bytes) else v for v in o.data] for o in outputs]

    def _check_connection(self) -> None:
        """Raise ServerError if the channel does not connect in time."""
        try:
            self._grpc.channel_ready_future(self._channel).result(CONNECT_TIMEOUT)
        except self._grpc.FutureTimeoutError:
            raise ServerError(f"No gRPC server answers at {self._target}.") from None
