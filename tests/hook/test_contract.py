"""What must exist in MLServer and uvicorn, whichever versions are installed."""

import importlib
import inspect
import re

import mlserver.handlers
import mlserver.metrics
import mlserver.parallel
import mlserver.rest
import mlserver.server
import pytest
import uvicorn
from mlserver.grpc import GRPCServer, interceptors, servicers

import mlserver_timm.server
from mlserver_timm.server import (
    data_plane,
    grpc,
    grpc_services,
    http_protocol,
    lifecycle,
    repository,
    rest,
)
from tests.support.paths import ROOT

OVERRIDES = {
    lifecycle.MLServer: "_configure_logger start stop",
    data_plane.DataPlane: "__init__ ready model_ready model_metadata _infer_contextmanager",
    data_plane.ModelRepositoryHandlers: "__init__ load unload",
    data_plane.InferencePoolRegistry: (
        "__init__ _should_load_model _get_or_create _handle_worker_stop"
    ),
    rest.RESTServer: "__init__ add_custom_handlers start stop",
    rest.NoSignalServer: "__init__ capture_signals",
    grpc.GRPCServer: "start stop _get_options _create_server",
    grpc.InferenceServicer: "ModelMetadata ModelInfer ModelStreamInfer",
    grpc_services.PromServerInterceptor: "_metrics_wrapper",
    http_protocol.HttpProtocol: (
        "connection_made connection_lost data_received on_header on_headers_complete on_body "
        "on_message_complete on_response_complete _start_asgi_task"
    ),
    http_protocol._Flow: "__init__ resume_reading",
}
"""The methods of the base classes that each class overrides."""

REASON = re.compile(r"(issue|pull request) \d+|tests/\S+\.py")


@pytest.mark.parametrize("cls", OVERRIDES, ids=lambda cls: cls.__name__)
def test_what_is_overridden_exists(cls: type) -> None:
    base = cls.__mro__[1]
    overridden = {
        name for name in vars(cls) if inspect.isfunction(vars(cls)[name]) and hasattr(base, name)
    }
    assert overridden == set(OVERRIDES[cls].split())


@pytest.mark.parametrize("cls", OVERRIDES, ids=lambda cls: cls.__name__)
def test_each_override_says_what_ends_it(cls: type) -> None:
    """An issue of MLServer or uvicorn, or the test that shows the fault."""
    for name in OVERRIDES[cls].split():
        reasons = f"{vars(cls)[name].__doc__ or ''} {cls.__doc__}"
        assert name == "__init__" or REASON.search(reasons), (cls, name)
        for path in re.findall(r"tests/\S+\.py", reasons):
            assert (ROOT / path).is_file(), path


REPLACED = [
    ("mlserver.server", "DataPlane", mlserver.handlers.DataPlane),
    ("mlserver.server", "ModelRepositoryHandlers", mlserver.handlers.ModelRepositoryHandlers),
    ("mlserver.server", "InferencePoolRegistry", mlserver.parallel.InferencePoolRegistry),
    ("mlserver.server", "RESTServer", mlserver.rest.RESTServer),
    ("mlserver.server", "GRPCServer", GRPCServer),
    ("mlserver.grpc.server", "InferenceServicer", servicers.InferenceServicer),
    ("mlserver.grpc.server", "PromServerInterceptor", interceptors.PromServerInterceptor),
    ("mlserver.rest.server", "_NoSignalServer", uvicorn.Server),
    ("mlserver.metrics.server", "_NoSignalServer", uvicorn.Server),
    ("mlserver.cli.main", "MLServer", mlserver.server.MLServer),
]


@pytest.mark.parametrize(("module", "name", "base"), REPLACED)
def test_what_is_replaced_exists(module: str, name: str, base: type) -> None:
    """Under this name MLServer finds its own class, or ours of the same name."""
    importlib.import_module(module)
    repository.install()
    found = vars(importlib.import_module(module))[name]
    assert issubclass(found, base) and found is not base
    assert found.__module__.startswith(mlserver_timm.server.__name__)
