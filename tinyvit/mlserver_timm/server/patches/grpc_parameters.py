"""An answer for gRPC parameters that cannot be read."""

from typing import Any

from mlserver.grpc.servicers import InferenceServicer
from mlserver.types import InferenceRequest
from pydantic import ValidationError

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import ServedModels

FAULT = (
    "gRPC parameters that the protocol reserves, of a wrong type, are answered with INTERNAL and "
    "the text of a Python error."
)
UPSTREAM = "unreported; tests/patches/test_grpc_parameters.py"
AFFECTS = ">=1.7.1,<1.8"

RESERVED = "The parameter 'content_type' must be text, and 'headers' must not be given."


def apply() -> None:
    """Concerns requests to this runtime's models alone: other models' clients get what they got."""

    def insert_headers(self: InferenceServicer, request: Any, context: Any) -> InferenceRequest:
        try:
            return original(self, request, context)
        except ValidationError:
            served = ServedModels(self._data_plane._model_registry)
            if not served.find(request.model_name, request.model_version):
                raise
            raise InvalidRequest(RESERVED) from None

    original = replace(InferenceServicer, "_InsertHeaders", insert_headers)
