"""The two ways to an Open Inference Protocol server: REST and gRPC."""

import base64
import io
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import requests
from PIL import Image, ImageOps
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

Encoding = Literal["array", "image"]

INPUT = "payload"
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 5.0, 60.0
MAX_MESSAGE = 64 * 2**20
"""Bytes; what the lab's server takes in over gRPC and REST."""


class ClientError(Exception):
    """One sentence for people: the picture, the server or the connection is not as it should be."""


class ServerError(ClientError):
    """The server cannot be reached or has no such model: no picture would fare better."""


class Prediction(NamedTuple):
    """A label and its probability."""

    label: str
    score: float


class Transport(Protocol):
    """A connection to one model."""

    def facts(self) -> dict[str, Any]:
        """What the model's metadata tells in `parameters`; raises ServerError."""
        ...

    def classify(self, picture: Path, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        """Best first; raises ClientError."""
        ...


def pixels(picture: Path) -> np.ndarray:
    """uint8 `[H,W,C]`, upright, with C 1 (grey), 3 (RGB) or 4 (RGBA); raises ClientError."""
    try:
        with Image.open(io.BytesIO(read(picture))) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel
                return (np.asarray(upright) / 257 + 0.5).astype(np.uint8)[:, :, None]
            if upright.has_transparency_data:
                return np.asarray(upright.convert("RGBA"))
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ClientError(f"{picture} is no image that can be read.") from None


def read(picture: Path) -> bytes:
    """The file's bytes; raises ClientError."""
    try:
        return picture.read_bytes()
    except OSError as error:
        raise ClientError(f"{picture} cannot be read: {error.strerror}.") from None


def request_body(picture: Path, top_k: int | None, encoding: Encoding) -> dict[str, Any]:
    """The inference request as JSON; raises ClientError."""
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, Parameters, RequestInput, TensorData

    if encoding == "array":
        payload = NumpyCodec.encode_input(INPUT, pixels(picture))
    else:
        data = TensorData(root=[base64.b64encode(read(picture)).decode()])
        payload = RequestInput(name=INPUT, datatype="BYTES", shape=[1], data=data)
    parameters = Parameters(**({"top_k": top_k} if top_k else {}))
    return InferenceRequest(inputs=[payload], parameters=parameters).model_dump()


class Rest:
    """Over HTTP, with retries on 503 and on connections that break, waiting longer each time."""

    def __init__(self, url: str, model: str, retries: int = 5, connections: int = 1) -> None:
        self._base = f"{url.rstrip('/')}/v2/models/{model}"
        self._model = model
        self._url = url
        self._first = requests.Session()
        self._session = requests.Session()
        patience = Retry(
            total=retries,
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

    def classify(self, picture: Path, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        body = request_body(picture, top_k, encoding)
        answer = self._send(self._session, "POST", f"{self._base}/infer", json=body)
        if not answer.ok:
            raise ClientError(f"{picture}: {_sentence(answer)}")
        labels, scores = (output["data"] for output in answer.json()["outputs"])
        return [Prediction(*pair) for pair in zip(labels, scores, strict=True)]

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
        self._target, self._model = target, model
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

        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_TIMEOUT)
            metadata = self._stub.ModelMetadata(
                pb.ModelMetadataRequest(name=self._model), timeout=ANSWER_TIMEOUT
            )
        except grpc.FutureTimeoutError:
            raise ServerError(
                f"No gRPC server answers at {self._target}; is it running? (make serve)"
            ) from None
        except grpc.RpcError as error:
            raise ServerError(f"The server at {self._target} says: {error.details()}") from None
        parameters = ModelMetadataResponseConverter.to_types(metadata).parameters
        return parameters.model_dump() if parameters else {}

    def classify(self, picture: Path, top_k: int | None, encoding: Encoding) -> list[Prediction]:
        import grpc
        from mlserver.codecs import StringCodec
        from mlserver.grpc.converters import ModelInferResponseConverter

        try:
            answer = self._stub.ModelInfer(
                self._request(picture, top_k, encoding), timeout=ANSWER_TIMEOUT
            )
        except grpc.RpcError as error:
            raise ClientError(f"{picture}: {error.details()}") from None
        labels, scores = ModelInferResponseConverter.to_types(answer).outputs
        pairs = zip(StringCodec.decode_output(labels), scores.data, strict=True)
        return [Prediction(*pair) for pair in pairs]

    def _request(self, picture: Path, top_k: int | None, encoding: Encoding) -> Any:
        from mlserver.grpc import dataplane_pb2 as pb

        if encoding == "array":
            array = pixels(picture)
            tensor = {"datatype": "UINT8", "shape": array.shape}
            contents = pb.InferTensorContents(uint_contents=array.ravel().tolist())
        else:
            tensor = {"datatype": "BYTES", "shape": [1]}
            contents = pb.InferTensorContents(bytes_contents=[read(picture)])
        request = pb.ModelInferRequest(model_name=self._model)
        request.inputs.add(name=INPUT, contents=contents, **tensor)
        if top_k:
            request.parameters["top_k"].int64_param = top_k
        return request
