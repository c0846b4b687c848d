"""The hook: MLServer imports it while it reads settings.json, before it builds its servers.

"model_repository_implementation": "mlserver_timm.server.ModelRepository"
"""

import sys

import mlserver.grpc.server
import mlserver.metrics.server
import mlserver.rest.server
import mlserver.server
from mlserver.repository import SchemalessModelRepository

from mlserver_timm.server import data_plane, grpc, grpc_services, lifecycle, rest

COMMAND_LINE = "mlserver.cli.main"
"""The module of `mlserver start`; `import mlserver.cli.main` would give its function `main`."""


class ModelRepository(SchemalessModelRepository):
    """MLServer's own repository; naming this one in settings.json installs this package."""


def install() -> None:
    """Replace the classes that `mlserver start` and MLServer.__init__ build."""
    module = mlserver.server
    module.DataPlane = data_plane.DataPlane
    module.ModelRepositoryHandlers = data_plane.ModelRepositoryHandlers
    module.InferencePoolRegistry = data_plane.InferencePoolRegistry
    module.RESTServer = rest.RESTServer
    module.GRPCServer = grpc.GRPCServer
    mlserver.grpc.server.InferenceServicer = grpc.InferenceServicer
    mlserver.grpc.server.PromServerInterceptor = grpc_services.PromServerInterceptor
    mlserver.rest.server._NoSignalServer = rest.NoSignalServer
    mlserver.metrics.server._NoSignalServer = rest.NoSignalServer
    if COMMAND_LINE in sys.modules:
        vars(sys.modules[COMMAND_LINE])["MLServer"] = lifecycle.MLServer
