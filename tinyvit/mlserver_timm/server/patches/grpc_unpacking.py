"""Compressed gRPC messages stay as they are until the model they are for can be asked."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpc import aio
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.model_repository_pb2_grpc import add_ModelRepositoryServiceServicer_to_server
from mlserver.grpc.server import DefaultGrpcWorkers, GRPCServer
from mlserver.rest import RESTServer

from mlserver_timm.server.patches.replacing import existing

FAULT = (
    "gRPC unpacks a compressed message before anybody has seen it, to a thousand times its size: "
    "a dozen of 60 KB each take 700 MB."
)
UPSTREAM = "unreported; tests/patches/test_grpc_unpacking.py"
AFFECTS = ">=1.7.1,<1.8"

STAY_PACKED = ("grpc.per_message_decompression", 0)
"""GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION; grpc_bombs unpacks in gRPC's place."""


def apply() -> None:
    """Only where the server is starting: then another one takes its place, with the same
    interceptors and servicers, before anybody has connected. In a server that runs, gRPC goes on
    unpacking, to `grpc_max_message_length` bytes.
    """
    existing(GRPCServer, "_create_server")
    rest, grpc = _starting(RESTServer), _starting(GRPCServer)
    if rest and grpc and not _runs(rest):
        first, grpc._server = grpc._server, _server_like(grpc)
        task = asyncio.get_running_loop().create_task(_exchange(first, grpc._server))
        _exchanges.add(task)
        task.add_done_callback(_exchanges.discard)


_exchanges: set[asyncio.Task[None]] = set()
"""Held, since the event loop does not hold them."""


def _starting(kind: Any) -> Any:
    """The server of this kind whose `start` has not returned."""
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        if getattr(coroutine, "cr_code", None) is kind.start.__code__:
            return coroutine.cr_frame.f_locals["self"]
    return None


def _runs(rest: RESTServer) -> bool:
    return getattr(getattr(rest, "_server", None), "started", False)


def _server_like(grpc: GRPCServer) -> aio.Server:
    server = aio.server(
        ThreadPoolExecutor(DefaultGrpcWorkers),
        interceptors=grpc._interceptors,
        options=[*grpc._get_options(), STAY_PACKED],
    )
    add_GRPCInferenceServiceServicer_to_server(grpc._inference_servicer, server)
    add_ModelRepositoryServiceServicer_to_server(grpc._model_repository_servicer, server)
    server.add_insecure_port(f"{grpc._settings.host}:{grpc._settings.grpc_port}")
    return server


async def _exchange(first: aio.Server, second: aio.Server) -> None:
    await second.start()
    await first.stop(None)
