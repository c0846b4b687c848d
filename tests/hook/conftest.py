"""Servers in the test's process, which must go on when a server in it stops."""

import threading
from collections.abc import AsyncIterator

import pytest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from mlserver_timm.server import lifecycle
from tests.support.in_process import Ended, calling
from tests.support.probes import OTHER, OURS


@pytest.fixture(autouse=True)
def _process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(failure: Exception | None) -> None:
        if threading.current_thread() is threading.main_thread():  # not the one that watches a stop
            raise Ended(failure)

    monkeypatch.setattr(lifecycle, "end_process", end)


@pytest.fixture
async def grpc_stub(_process_goes_on: None) -> AsyncIterator[GRPCInferenceServiceStub]:
    """A gRPC client of a server with a model of this runtime and another one."""
    async with calling(OURS, OTHER) as stub:
        yield stub
