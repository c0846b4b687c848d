"""gRPC's own services: health, which Kubernetes' probes ask, and the counting of calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from grpc import StatusCode
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from mlserver.errors import MLServerError
from mlserver.grpc import interceptors

from mlserver_timm.errors import short
from mlserver_timm.server.data_plane import DataPlane

WATCH_INTERVAL = 1.0
"""Seconds between two looks at the server's readiness for a client that watches it."""

LATE = 0.5
"""Maximum seconds before the deadline at which a cancelled call counts as DEADLINE_EXCEEDED: the
client's clock for the deadline starts a little earlier than the server's."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers with the server's readiness; the service may be any of `services`, or none."""

    def __init__(self, data_plane: DataPlane, services: Mapping[str, object]) -> None:
        self._data_plane = data_plane
        self._services = services

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802
        """Return the current status; an unknown service gets NOT_FOUND."""
        status = await self._status(request)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise MLServerError(f"Unknown service '{short(request.service)}'.", 404)
        return HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: HealthCheckRequest, context: Any
    ) -> AsyncIterator[HealthCheckResponse]:
        """Yield the status now and whenever it changes, until the server stops; an unknown service
        gets SERVICE_UNKNOWN, as gRPC's health protocol says."""
        last = None
        while True:
            stopping = self._data_plane.stopping  # a stop may begin while a response is sent
            status = await self._status(request)
            if status != last:
                yield HealthCheckResponse(status=status)
            if stopping:
                return
            last = status
            await asyncio.sleep(WATCH_INTERVAL)

    async def _status(self, request: HealthCheckRequest) -> int:
        if request.service and request.service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        ready = await self._data_plane.ready()
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING


class PromServerInterceptor(interceptors.PromServerInterceptor):
    """Counts each call once, with the code that its client gets.

    MLServer counts only unary calls that were answered (tests/hook/test_grpc_metrics.py).
    """

    def _metrics_wrapper(
        self,
        method_call: tuple[str, str, bool],
        behavior: Callable[..., Any],
        request_streaming: bool,
        response_streaming: bool,
    ) -> Callable[..., Any]:
        service, method, _ = method_call
        labels = {
            "grpc_type": interceptors.grpc_utils.get_method_type(
                request_streaming, response_streaming
            ),
            "grpc_service": service,
            "grpc_method": method,
        }
        received = self._interceptor._metrics["grpc_server_stream_msg_received"]
        sent = self._interceptor._metrics["grpc_server_stream_msg_sent"]
        counting = interceptors.wrap_async_iterator_inc_counter

        async def unary(request: Any, context: Any) -> Any:
            with self._counted(labels, context):
                return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            if request_streaming:
                request = counting(request, received, *labels.values())
            with self._counted(labels, context):
                async for response in counting(behavior(request, context), sent, *labels.values()):
                    yield response

        return stream if response_streaming else unary

    @contextmanager
    def _counted(self, labels: Mapping[str, str], context: Any) -> Iterator[None]:
        metrics = self._interceptor._metrics
        metrics["grpc_server_started_counter"].labels(**labels).inc()
        code = None
        try:
            with metrics["grpc_server_handled_histogram"].labels(**labels).time():
                yield
        except (asyncio.CancelledError, GeneratorExit):
            remaining = context.time_remaining()
            is_late = remaining is not None and remaining < LATE
            code = StatusCode.DEADLINE_EXCEEDED if is_late else StatusCode.CANCELLED
            raise
        finally:
            # A method ends with a response or by an abort, which sets the code: see `grpc._call`.
            code = code or self._compute_status_code(context)
            self._interceptor.increase_grpc_server_handled_total_counter(
                *labels.values(), code.name
            )
