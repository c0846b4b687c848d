"""MLServer's gRPC server, with limits on its messages, one mapping of errors to status codes, and a
port that opens once the start-up models are loaded."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from mlserver.errors import MLServerError
from mlserver.grpc import GRPCServer as MLServerGRPCServer, dataplane_pb2 as pb, servicers
from mlserver.grpc.converters import ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.model_repository_pb2_grpc import add_ModelRepositoryServiceServicer_to_server
from mlserver.grpc.utils import STATUS_CODE_MAPPING
from mlserver.handlers import ModelRepositoryHandlers
from mlserver.settings import Settings
from mlserver.types import InferenceRequest
from pydantic import ValidationError

from mlserver_timm.errors import InvalidRequest, RequestFailed
from mlserver_timm.server.data_plane import DataPlane
from mlserver_timm.server.grpc_messages import (
    HeldMessages,
    Malformed,
    ReceivedMessage,
    read_message,
    requested_model,
)
from mlserver_timm.server.limits import (
    MAX_BODY_BYTES,
    MAX_HELD_BYTES,
    MAX_REPOSITORY_BYTES,
    STOP_TIMEOUT,
    decompress,
    decompress_start,
    max_decompressed,
)

OPTIONS = [
    ("grpc.so_reuseport", 0),  # else a second server takes a share of the connections
    ("grpc.per_message_decompression", 0),  # decompressed here, within a limit
]

CODES = STATUS_CODE_MAPPING | {
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC codes of HTTP statuses. MLServer answers the last three with UNKNOWN, which no client
retries."""

ENCODINGS = {0x1F: "gzip", 0x78: "deflate"}
"""Compression by the first byte of a message, with which no message of the protocol begins: it
would be a field of an unknown wire type, or number 15."""

HEAD = 4096
"""Bytes at the start of a message that contain the model's name."""

DEFAULT_LIMIT, UNLIMITED = 4 * 2**20, -1
"""gRPC's limit without `grpc_max_message_length`, and the value that turns the limit off. Any
message may be decompressed to the former size, which takes 10 ms on the event loop."""

NO_MESSAGE = "The message is not a valid {} of the Open Inference Protocol."
RESERVED = "The parameter 'content_type' must be text, and 'headers' must not be sent."

logger = logging.getLogger("mlserver.tinyvit")


@dataclass(frozen=True)
class RefusedMessage:
    """Stands for a message that was not parsed: gRPC would answer an exception of its deserializer
    with UNKNOWN and the name of a Python class."""

    error: MLServerError


def status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the code and details of a call that fails, and log a fault of the server."""
    if not isinstance(error, MLServerError):
        logger.error("A gRPC call failed.", exc_info=error)
        error = RequestFailed()
    return CODES.get(error.status_code, grpc.StatusCode.UNKNOWN), str(error)


class InferenceServicer(servicers.InferenceServicer):
    """Answers calls for models of this runtime itself, and leaves others to MLServer."""

    def __init__(
        self, data_plane: DataPlane, model_repository_handlers: ModelRepositoryHandlers
    ) -> None:
        super().__init__(data_plane, model_repository_handlers)
        self._held = HeldMessages(MAX_HELD_BYTES)

    async def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Map errors to codes, without a traceback for each refusal (tests/hook/test_grpc.py)."""
        if isinstance(request, pb.ModelInferRequest):
            return await super().ModelInfer(request, context)
        try:
            return await self._infer(request, context)
        except Exception as error:
            code, details = status(error)
        # Not within `except`: gRPC keeps what it raises here, and with it the request's memory.
        return await context.abort(code, details)

    async def ModelStreamInfer(  # noqa: N802
        self, requests_stream: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """Map errors to codes, as ModelInfer does (tests/hook/test_grpc.py)."""
        first = await anext(aiter(requests_stream), None)
        if first is None:
            return
        if isinstance(first, pb.ModelInferRequest):
            async for response in super().ModelStreamInfer(_chain(first, requests_stream), context):
                yield response
            return
        try:
            async for response in self._stream(first, requests_stream, context):
                yield response
            return
        except Exception as error:
            code, details = status(error)
        await context.abort(code, details)

    def _InsertHeaders(  # noqa: N802
        self, request: pb.ModelInferRequest | ReceivedMessage | RefusedMessage, context: Any
    ) -> InferenceRequest:
        """Return the request in a message of any kind, within the limit of all messages together
        (tests/unit/test_messages.py)."""
        if isinstance(request, RefusedMessage):
            raise request.error
        if isinstance(request, pb.ModelInferRequest):
            return super()._InsertHeaders(request, context)
        self._held.hold(context, request)
        try:
            payload = super()._InsertHeaders(request.parsed, context)
        except ValidationError:
            raise InvalidRequest(RESERVED) from None
        request.put_data(payload)
        return payload

    async def _infer(self, request: Any, context: Any) -> pb.ModelInferResponse:
        payload = self._InsertHeaders(request, context)
        use_raw = bool(request.raw_input_contents)
        result = await self._data_plane.infer(payload, request.model_name, request.model_version)
        self._SetTrailingMetadata(result, context)
        return ModelInferResponseConverter.from_types(result, use_raw=use_raw)

    async def _stream(
        self, first: Any, others: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[pb.ModelInferResponse]:
        if isinstance(first, RefusedMessage):
            raise first.error
        use_raw = bool(first.raw_input_contents)
        payloads = self._PayloadsMetadataGenerator(first, others, context)
        name, version = first.model_name, first.model_version
        async for result in self._data_plane.infer_stream(payloads, name, version):
            yield ModelInferResponseConverter.from_types(result, use_raw=use_raw)
        self._SetTrailingMetadata(result, context)


async def _chain(first: Any, others: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for other in others:
        yield other


class GRPCServer(MLServerGRPCServer):
    """Bounds every message, and opens its port once `models_loaded` is set."""

    _data_plane: DataPlane
    _server: aio.Server | None = None

    def __init__(
        self,
        settings: Settings,
        data_plane: DataPlane,
        model_repository_handlers: ModelRepositoryHandlers,
    ) -> None:
        super().__init__(settings, data_plane, model_repository_handlers)
        self.models_loaded = asyncio.Event()
        self.models_loaded.set()
        limit = settings.grpc_max_message_length
        self._limit = {None: DEFAULT_LIMIT, UNLIMITED: sys.maxsize - 1}.get(limit, limit)

    async def start(self) -> None:
        """Accept nobody while start-up models are loaded: a port that is open already lets clients
        connect, and then wait (tests/hook/test_start.py)."""
        await self.models_loaded.wait()
        if not self._data_plane.stopping:
            await super().start()

    async def stop(self, sig: int | None = None) -> None:
        """Return once accepted calls are answered, or after STOP_TIMEOUT; MLServer waits 5 s
        (tests/hook/test_stop.py)."""
        self.models_loaded.set()
        if self._server:
            await self._server.stop(grace=STOP_TIMEOUT)

    def _get_options(self) -> list[tuple[str, Any]]:
        """Keep the port to one server, and compressed messages compressed
        (tests/server/test_grpc_limits.py)."""
        return [*super()._get_options(), *OPTIONS]

    def _create_server(self) -> aio.Server:
        """Register handlers that bound what a message takes in memory, over the generated ones.

        Protobuf turns 30 MB into gigabytes (tests/server/test_grpc_limits.py).
        """
        server = super()._create_server()
        servicer = InferenceServicer(self._data_plane, self._model_repository_handlers)
        services = _Services()
        add_GRPCInferenceServiceServicer_to_server(servicer, services)
        add_ModelRepositoryServiceServicer_to_server(self._model_repository_servicer, services)
        for service, handlers in services.items():
            bounded = {name: self._bounded(handler) for name, handler in handlers.items()}
            server.add_registered_method_handlers(service, bounded)
        return server

    def _bounded(self, handler: Any) -> Any:
        parse = handler.request_deserializer
        if parse == pb.ModelInferRequest.FromString:
            return handler._replace(request_deserializer=self._read)
        return handler._replace(
            request_deserializer=lambda message: _parse(message, parse),
            unary_unary=_unless_refused(handler.unary_unary),
        )

    def _read(self, message: bytes) -> pb.ModelInferRequest | ReceivedMessage | RefusedMessage:
        """Return another model's message as MLServer does, or what was read or refused here."""
        try:
            name, version = requested_model(_start(message))
            if self._data_plane.timm_models.is_of_another_runtime(name, version):
                return pb.ModelInferRequest.FromString(_decompressed(message, self._limit))
            limit = min(self._limit, MAX_BODY_BYTES)
            limit = max_decompressed(len(message), limit, DEFAULT_LIMIT)
            return read_message(_decompressed(message, limit))
        except MLServerError as error:
            return RefusedMessage(error.with_traceback(None))
        except (Malformed, DecodeError):
            return RefusedMessage(InvalidRequest(NO_MESSAGE.format("ModelInferRequest")))


class _Services(dict[str, dict[str, Any]]):
    """Takes a server's place in generated code, and keeps the handlers of each service."""

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore what is registered a second time, by method name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self[service] = handlers


def _start(message: bytes) -> bytes:
    is_compressed = bool(message) and message[0] in ENCODINGS
    return decompress_start(message, HEAD) if is_compressed else message


def _decompressed(message: bytes, limit: int) -> bytes:
    encoding = ENCODINGS.get(message[0]) if message else None
    return decompress(message, encoding, limit) if encoding else message


def _parse(message: bytes, parse: Callable[[bytes], Any]) -> Any:
    """Return a message of a method that takes a few words."""
    try:
        return parse(_decompressed(message, MAX_REPOSITORY_BYTES))
    except MLServerError as error:
        return RefusedMessage(error.with_traceback(None))
    except DecodeError:
        kind = parse.__self__.DESCRIPTOR.name  # type: ignore[attr-defined]
        return RefusedMessage(InvalidRequest(NO_MESSAGE.format(kind)))


def _unless_refused(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        if isinstance(request, RefusedMessage):
            await context.abort(*status(request.error))
        return await method(request, context)

    return call
