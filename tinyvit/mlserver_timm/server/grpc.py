"""MLServer's gRPC server, with limits on its messages, one mapping of errors to status codes, and a
port that opens once the start-up models are loaded."""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server
from mlserver.errors import MLServerError
from mlserver.grpc import GRPCServer as MLServerGRPCServer, dataplane_pb2 as pb, servicers
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.model_repository_pb2_grpc import add_ModelRepositoryServiceServicer_to_server
from mlserver.grpc.utils import STATUS_CODE_MAPPING, to_metadata

from mlserver_timm.errors import InvalidRequest, RequestFailed
from mlserver_timm.memory import return_to_system
from mlserver_timm.metrics import note_correlation
from mlserver_timm.protocol.request import InferRequest, unwrap_files
from mlserver_timm.runtime import TimmModel
from mlserver_timm.server.data_plane import DataPlane
from mlserver_timm.server.grpc_messages import (
    ReceivedMessage,
    read_message,
    requested_model,
    response_message,
)
from mlserver_timm.server.grpc_services import HealthServicer
from mlserver_timm.server.limits import (
    ANY_WINDOW,
    MAX_BODY_BYTES,
    MAX_GRPC_BYTES,
    MAX_REPOSITORY_BYTES,
    ON_LOOP_BYTES,
    STOP_TIMEOUT,
    decompress,
    max_decompressed,
)
from mlserver_timm.server.middleware import count_refusal

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

ENCODINGS = {b"\x1f": "gzip", b"\x78": "deflate"}
"""Compression by a message's first byte. No message of the protocol begins with these bytes: they
stand for an unknown wire type (0x1F) and for field number 15 (0x78)."""

HEAD = 4096
"""Bytes at the start of a message that contain the model's name."""

UNLIMITED = -1
"""Value of `grpc_max_message_length` that turns the limit off; protobuf's own is 2 GiB."""

FREE_BYTES = 4 * 2**20
"""Size to which a message may be decompressed at any ratio, which takes 10 ms on the event loop."""

LARGE = 4 * 2**20
"""Size in bytes from which on a message leaves enough freed memory to return to the system."""

PAUSE = 0.5
"""Seconds after the last large message until freed memory is returned to the system."""

Unread = list[bytes]
"""A serialized message, alone in a list. Reading the message empties the list: gRPC keeps a refused
call's arguments, and would keep the message in memory."""

MIXED = "All messages of a stream must be for models of the same runtime."
NO_MESSAGE = "The message is not a valid {} of the Open Inference Protocol."

logger = logging.getLogger("mlserver.tinyvit")


class InferenceServicer(servicers.InferenceServicer):
    """Answers calls for models of this runtime itself, and leaves others to MLServer."""

    _data_plane: DataPlane

    async def ModelMetadata(self, request: Any, context: Any) -> pb.ModelMetadataResponse:  # noqa: N802
        """Return a model's metadata, without a traceback in the log for an unknown model
        (tests/hook/test_unknown_models.py)."""
        self._data_plane.timm_models.require(request.name, request.version)
        return await super().ModelMetadata(request, context)

    async def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Return a model's answer, without a traceback in the log for a refusal
        (tests/hook/test_grpc.py)."""
        if isinstance(request, pb.ModelInferRequest):
            return await super().ModelInfer(request, context)
        return await self._answer(request, context)

    async def ModelStreamInfer(  # noqa: N802
        self, requests_stream: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """Answer as ModelInfer does, each message by itself (tests/hook/test_grpc.py).

        All responses have the id of the first, as in MLServer.
        """
        first = await anext(requests_stream, None)
        if first is None:
            return
        messages = _chain(first, requests_stream)
        if isinstance(first, pb.ModelInferRequest):
            async for response in super().ModelStreamInfer(messages, context):
                yield response
            return
        identifier = None
        async for message in messages:
            response = await self._answer(message, context, identifier)
            identifier = response.id
            yield response

    async def _answer(
        self, message: ReceivedMessage, context: Any, identifier: str | None = None
    ) -> pb.ModelInferResponse:
        note_correlation(dict(context.invocation_metadata() or ()))
        payload, name, version = message.request, message.model_name, message.model_version
        payload = replace(payload, id=identifier) if identifier else payload
        with self._data_plane.message_budget.body() as held:
            held.complete = True
            try:
                held.add(message.size)
            except MLServerError as error:
                count_refusal(self._data_plane.timm_models.served(name, version), error)
                raise
            response, headers = await self._data_plane.classify(payload, name, version)
        message.request = InferRequest([])  # a stream keeps the message until the next one arrives
        context.set_trailing_metadata(to_metadata(headers))
        return response_message(response, message.has_raw_contents)


async def _chain(first: Any, others: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for other in others:
        if type(other) is not type(first):
            raise InvalidRequest(MIXED)
        yield other


class GRPCServer(MLServerGRPCServer):
    """Bounds every message, and opens its port once the start-up models are loaded."""

    _data_plane: DataPlane
    _server: aio.Server | None = None
    _returning: asyncio.TimerHandle | None = None

    @cached_property
    def _limit(self) -> int:
        """Maximum size of a message in bytes."""
        limit = self._settings.grpc_max_message_length
        return {None: MAX_GRPC_BYTES, UNLIMITED: 2**31 - 1}.get(limit, limit)

    async def start(self) -> None:
        """Open the port once the start-up models are loaded. Until then connections are refused,
        which gRPC clients and proxies retry (tests/hook/test_start.py)."""
        await self._data_plane.models_loaded.wait()
        if not self._data_plane.stopping:
            await super().start()

    async def stop(self, sig: int | None = None) -> None:
        """Return once accepted calls are answered, or after STOP_TIMEOUT; MLServer waits 5 s
        (tests/hook/test_stop.py)."""
        self._data_plane.models_loaded.set()
        if self._server:
            await self._server.stop(grace=STOP_TIMEOUT)

    def _get_options(self) -> list[tuple[str, Any]]:
        """Return MLServer's options, with three changes (tests/server/test_grpc_limits.py).

        No other server shares the port, gRPC does not decompress, and the container's memory limits
        the size of messages.
        """
        limit = ("grpc.max_receive_message_length", self._limit)
        return [*super()._get_options(), *OPTIONS, limit]

    def _create_server(self) -> aio.Server:
        """Register handlers that bound what a message takes in memory, over the generated ones.

        Protobuf turns 30 MB into gigabytes (tests/server/test_grpc_limits.py).
        """
        server = super()._create_server()
        services = _Services()
        add_GRPCInferenceServiceServicer_to_server(self._inference_servicer, services)
        add_ModelRepositoryServiceServicer_to_server(self._model_repository_servicer, services)
        add_HealthServicer_to_server(HealthServicer(self._data_plane, services), services)
        names = [*services, reflection.SERVICE_NAME]
        add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), services)
        for service, handlers in services.items():
            bounded = {name: self._bounded(handler) for name, handler in handlers.items()}
            server.add_registered_method_handlers(service, bounded)
        return server

    def _bounded(self, handler: Any) -> Any:
        """Return the handler with bounded messages, and with a code for each error."""
        parse = handler.request_deserializer
        is_infer = parse == pb.ModelInferRequest.FromString

        async def read(unread: Unread, context: Any) -> Any:
            message = unread.pop()
            return await self._read(message, context) if is_infer else _parse(parse, message)

        async def read_each(messages: AsyncIterator[Unread], context: Any) -> AsyncIterator[Any]:
            return (await read(unread, context) async for unread in messages)

        return handler._replace(
            request_deserializer=lambda message: [message],
            unary_unary=handler.unary_unary and _call(handler.unary_unary, read),
            unary_stream=handler.unary_stream and _stream(handler.unary_stream, read),
            stream_stream=handler.stream_stream and _stream(handler.stream_stream, read_each),
        )

    async def _read(self, message: bytes, context: Any) -> pb.ModelInferRequest | ReceivedMessage:
        """Return another model's message as MLServer does, or what was read here; count and log a
        message that is refused. Large messages are read on a thread."""
        if len(message) >= LARGE:
            context.add_done_callback(self._return_memory)
        try:
            if len(message) <= ON_LOOP_BYTES and message[:1] not in ENCODINGS:
                return self._parse_infer(message)
            with self._data_plane.message_budget.body() as held:
                held.complete = True
                held.add(len(message))
                loop, readers = asyncio.get_running_loop(), self._data_plane.readers
                return await loop.run_in_executor(readers, self._parse_infer, message)
        except MLServerError as error:
            note_correlation(dict(context.invocation_metadata() or ()))
            model = self._data_plane.timm_models.served(*requested_model(_start(message)))
            count_refusal(model, error)
            raise

    def _parse_infer(self, message: bytes) -> pb.ModelInferRequest | ReceivedMessage:
        try:
            name, version = requested_model(_start(message))
            # The name may come after the inputs; it is looked up again once those are read.
            model = self._data_plane.timm_models.require(name, version) if name else None
            if model and not isinstance(model, TimmModel):
                return pb.ModelInferRequest.FromString(_decompressed(message, self._limit))
            limit = min(self._limit, MAX_BODY_BYTES)
            limit = max_decompressed(len(message), limit, FREE_BYTES)
            received = read_message(_decompressed(message, limit))
            model = self._data_plane.timm_models.require(
                received.model_name, received.model_version
            )
            if isinstance(model, TimmModel):
                return replace(received, request=unwrap_files(received.request))
            return pb.ModelInferRequest.FromString(_decompressed(message, limit))
        except DecodeError:
            raise InvalidRequest(NO_MESSAGE.format("ModelInferRequest")) from None

    def _return_memory(self, context: Any) -> None:
        """Return memory on a thread, and once for calls that end together."""
        if self._returning:
            self._returning.cancel()
        loop = asyncio.get_running_loop()
        self._returning = loop.call_later(PAUSE, loop.run_in_executor, None, return_to_system)


class _Services(dict[str, dict[str, Any]]):
    """Takes a server's place in generated code, and keeps the handlers of each service."""

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore what is registered a second time, by method name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self[service] = handlers


def _start(message: bytes) -> bytes:
    """Return the first HEAD bytes of a compressed message, decompressed; others unchanged."""
    try:
        return zlib.decompressobj(ANY_WINDOW).decompress(message, HEAD)
    except zlib.error:
        return message


def _decompressed(message: bytes, limit: int) -> bytes:
    encoding = ENCODINGS.get(message[:1])
    return decompress(message, encoding, limit) if encoding else message


def _parse(parse: Callable[[bytes], Any], message: bytes) -> Any:
    """Return the parsed message of a method other than ModelInfer, whose messages are small."""
    try:
        return parse(_decompressed(message, MAX_REPOSITORY_BYTES))
    except DecodeError:
        kind = parse.__self__.DESCRIPTOR.name  # type: ignore[attr-defined]
        raise InvalidRequest(NO_MESSAGE.format(kind)) from None


def _call(
    method: Callable[..., Awaitable[Any]], read: Callable[[Any, Any], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return a unary method that ends with a status code if it raises an error."""

    async def call(unread: Unread, context: Any) -> Any:
        try:
            return await method(await read(unread, context), context)
        except aio.AbortError:
            raise
        except Exception as error:
            code, details = _status(error)
        # Not within `except`: gRPC keeps what it raises here, and with it the request's memory.
        return await context.abort(code, details)

    return call


def _stream(
    method: Callable[..., AsyncIterator[Any]], read: Callable[[Any, Any], Awaitable[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    """Return a streaming method that ends with a status code if it raises an error."""

    async def stream(unread: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in method(await read(unread, context), context):
                yield response
            return
        except aio.AbortError:
            raise
        except Exception as error:
            code, details = _status(error)
        await context.abort(code, details)

    return stream


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the code and details of a call that fails, and log a fault of the server."""
    if not isinstance(error, MLServerError):
        logger.error("A gRPC call failed.", exc_info=error)
        error = RequestFailed()
    return CODES.get(error.status_code, grpc.StatusCode.UNKNOWN), str(error)
