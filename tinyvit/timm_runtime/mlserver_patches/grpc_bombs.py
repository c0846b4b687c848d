"""Bounds on what a gRPC message makes in memory."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from grpc._utilities import RpcMethodHandler
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.servicers import InferenceServicer
from mlserver.types import InferenceRequest

from ..errors import InvalidRequest
from ..rest.served_models import ServedModels
from ..rpc.message_limits import Malformed, addressed_model, check_message
from .replacing import replace

FAULT = (
    "A gRPC message is unpacked and parsed whatever comes of it: 58 KB of compressed empty "
    "elements become gigabytes, and hold every other request meanwhile."
)
UPSTREAM = "unreported; tests/patches/test_grpc_bombs.py"
AFFECTS = ">=1.7.1,<1.8"

NO_MESSAGE = "The message is no ModelInferRequest of the Open Inference Protocol."


@dataclass(frozen=True)
class RefusedMessage:
    """What MLServer's servicer gets in the place of a message that was not parsed."""

    error: InvalidRequest
    model_name: str
    model_version: str
    raw_input_contents: tuple[bytes, ...] = ()


def apply() -> None:
    """Concerns this runtime's models, and names that no model has: messages for other models are
    parsed as they were.

    A gRPC server keeps its handlers to itself once it runs, but asks each for its parser with each
    message.
    """

    def request_deserializer(handler: RpcMethodHandler) -> Any:
        parse = original.__get__(handler)
        if parse != pb.ModelInferRequest.FromString:
            return parse
        servicer = getattr(handler.unary_unary or handler.stream_stream, "__self__", None)
        return _bounded(servicer) if isinstance(servicer, InferenceServicer) else parse

    original = replace(RpcMethodHandler, "request_deserializer", property(request_deserializer))

    def insert_headers(self: InferenceServicer, request: Any, context: Any) -> InferenceRequest:
        if isinstance(request, RefusedMessage):
            raise request.error
        return insert_original(self, request, context)

    insert_original = replace(InferenceServicer, "_InsertHeaders", insert_headers)


def _bounded(servicer: InferenceServicer) -> Any:
    parse = pb.ModelInferRequest.FromString
    registry = servicer._data_plane._model_registry

    def bounded(message: bytes) -> Any:
        name, version = "", None
        try:
            name, version = addressed_model(message)
            if name in registry._models and not ServedModels(registry).find(name, version):
                return parse(message)
            check_message(message)
            return parse(message)
        except InvalidRequest as error:
            return RefusedMessage(error, name, version or "")
        except (Malformed, DecodeError):
            return RefusedMessage(InvalidRequest(NO_MESSAGE), name, version or "")

    return bounded
