"""Bounds on what a gRPC message makes in memory."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from grpc._utilities import RpcMethodHandler
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as pb, utils
from mlserver.grpc.model_repository import ModelRepositoryServicer
from mlserver.grpc.servicers import InferenceServicer
from mlserver.types import InferenceRequest

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.mlserver_types import to_inference_request
from mlserver_timm.server.application import MAX_BODY_BYTES, MAX_HELD_BYTES, MAX_REPOSITORY_BYTES
from mlserver_timm.server.decompression import beginning, in_proportion, unpack
from mlserver_timm.server.grpc_held_messages import HeldMessages
from mlserver_timm.server.grpc_messages import ReceivedMessage, read_message
from mlserver_timm.server.grpc_wire_format import Malformed, addressed_model
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import ServedModels

FAULT = (
    "A gRPC message is parsed whatever comes of it: 30 MB of empty elements become gigabytes, each "
    "byte of raw contents becomes 16, and every other request waits meanwhile."
)
UPSTREAM = "unreported; tests/patches/test_grpc_bombs.py"
AFFECTS = ">=1.7.1,<1.8"

NO_MESSAGE = "The message is no {} of the Open Inference Protocol."

ENCODINGS = {0x1F: "gzip", 0x78: "deflate"}
"""By the first byte, with which no message of the protocol begins: it would be a field of a type
that there is not, or number 15."""

HEAD = 4096
"""Bytes of a message in which its model is named."""

UNSET, UNLIMITED = 4 * 2**20, -1
"""What gRPC takes where `grpc_max_message_length` is not set, and how it is set for any length. To
the first every message may be unpacked: that holds the event loop for some 10 ms."""


SERVICERS = (InferenceServicer, ModelRepositoryServicer)
INFERENCE = pb.ModelInferRequest.FromString


@dataclass(frozen=True)
class RefusedMessage:
    """What MLServer's servicer gets in the place of a message that was not parsed."""

    error: MLServerError
    model_name: str = ""
    model_version: str = ""
    raw_input_contents: tuple[bytes, ...] = ()


def apply() -> None:
    """Concerns this runtime's models, and names that no model has: messages for other models are
    parsed as they were.

    A gRPC server keeps its handlers to itself once it runs, but asks each for its parser with each
    message. What is still packed (grpc_unpacking) is unpacked here.
    """
    held = HeldMessages(MAX_HELD_BYTES)

    def request_deserializer(handler: RpcMethodHandler) -> Any:
        parse, servicer = parse_original.__get__(handler), servicer_of(handler)
        if servicer is None:
            return parse
        if parse == INFERENCE:
            return _Reader(servicer).read
        return lambda message: _parsed(message, parse)

    def unary_unary(handler: RpcMethodHandler) -> Any:
        method = method_original.__get__(handler)
        if not method or not servicer_of(handler) or parse_original.__get__(handler) == INFERENCE:
            return method
        return _unless_refused(method)

    def servicer_of(handler: RpcMethodHandler) -> Any:
        method = method_original.__get__(handler) or handler.stream_stream
        servicer = getattr(method, "__self__", None)
        return servicer if isinstance(servicer, SERVICERS) else None

    parse_original = replace(
        RpcMethodHandler, "request_deserializer", property(request_deserializer)
    )
    method_original = replace(RpcMethodHandler, "unary_unary", property(unary_unary))

    def insert_headers(self: InferenceServicer, request: Any, context: Any) -> InferenceRequest:
        if isinstance(request, RefusedMessage):
            raise request.error
        if not isinstance(request, ReceivedMessage):
            return insert_original(self, request, context)
        held.hold(context, request)
        read = to_inference_request(request.infer_request())
        for owner in (request.parsed, *request.parsed.inputs, *request.parsed.outputs):
            owner.ClearField("parameters")
        payload = insert_original(self, request.parsed, context)
        payload.inputs, payload.outputs = read.inputs, read.outputs
        headers = payload.parameters.model_dump().get("headers") if payload.parameters else None
        payload.parameters = read.parameters
        if headers and payload.parameters:
            payload.parameters.headers = headers
        return payload

    insert_original = replace(InferenceServicer, "_InsertHeaders", insert_headers)


def _unpacked(message: bytes, most: int) -> bytes:
    encoding = ENCODINGS.get(message[0]) if message else None
    return unpack(message, encoding, most) if encoding else message


def _parsed(message: bytes, parse: Callable[[bytes], Any]) -> Any:
    """A message that names no model, or has little else in it."""
    try:
        return parse(_unpacked(message, MAX_REPOSITORY_BYTES))
    except MLServerError as error:
        return RefusedMessage(error.with_traceback(None))
    except DecodeError:
        kind = parse.__self__.DESCRIPTOR.name  # type: ignore[attr-defined]
        return RefusedMessage(InvalidRequest(NO_MESSAGE.format(kind)))


def _unless_refused(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """gRPC would answer what its parser raises with UNKNOWN and the name of the Python class."""

    async def call(request: Any, context: Any) -> Any:
        if isinstance(request, RefusedMessage):
            await context.abort(utils._grpc_status_code(request.error), str(request.error))
        return await method(request, context)

    return call


class _Reader:
    """Reads the ModelInferRequests of one server."""

    def __init__(self, servicer: InferenceServicer) -> None:
        self._registry = servicer._data_plane._model_registry
        most = servicer._data_plane._settings.grpc_max_message_length
        self._most = UNSET if most is None else sys.maxsize - 1 if most == UNLIMITED else most

    def read(self, message: bytes) -> pb.ModelInferRequest | ReceivedMessage | RefusedMessage:
        name, version = "", None
        try:
            name, version = addressed_model(_head(message))
            if self._is_of_another(name, version):
                return pb.ModelInferRequest.FromString(_unpacked(message, self._most))
            limit = in_proportion(len(message), min(self._most, MAX_BODY_BYTES), UNSET)
            return read_message(_unpacked(message, limit))
        except MLServerError as error:
            return RefusedMessage(error.with_traceback(None), name, version or "")
        except (Malformed, DecodeError):
            refusal = InvalidRequest(NO_MESSAGE.format("ModelInferRequest"))
            return RefusedMessage(refusal, name, version or "")

    def _is_of_another(self, name: str, version: str | None) -> bool:
        known = name in self._registry._models
        return known and not ServedModels(self._registry).find(name, version)


def _head(message: bytes) -> bytes:
    return beginning(message, HEAD) if message and message[0] in ENCODINGS else message
