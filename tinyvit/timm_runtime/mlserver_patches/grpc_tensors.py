"""An answer for gRPC tensors that cannot be read."""

import struct
from typing import Any

from mlserver.grpc.servicers import InferenceServicer
from mlserver.types import InferenceRequest
from pydantic import ValidationError

from ..errors import InvalidRequest
from ..rest.served_models import ServedModels
from .replacing import replace

FAULT = (
    "gRPC tensors whose bytes do not make up their shape, and parameters that the protocol "
    "reserves, are answered with INTERNAL and the text of a Python error."
)
UPSTREAM = "unreported; tests/patches/test_grpc_tensors.py"
AFFECTS = ">=1.7.1,<1.8"

UNREADABLE = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError)
"""What MLServer's converter raises on them."""


def apply() -> None:
    """Concerns requests to this runtime's models alone: other models' clients get what they got."""

    def insert_headers(self: InferenceServicer, request: Any, context: Any) -> InferenceRequest:
        try:
            return original(self, request, context)
        except UNREADABLE as error:
            served = ServedModels(self._data_plane._model_registry)
            if not served.find(request.model_name, request.model_version):
                raise
            raise _refusal(error) from None

    original = replace(InferenceServicer, "_InsertHeaders", insert_headers)


def _refusal(error: Exception) -> InvalidRequest:
    if isinstance(error, ValidationError):
        return InvalidRequest(
            "The parameter 'content_type' must be text, and 'headers' must not be given."
        )
    return InvalidRequest(
        "The request's tensors cannot be read: their bytes do not make up their shapes."
    )
