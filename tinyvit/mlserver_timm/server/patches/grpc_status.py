"""gRPC status codes for what MLServer knows in REST only."""

import grpc
from mlserver.errors import MLServerError
from mlserver.grpc import utils

from mlserver_timm.server.patches.refusal_tracebacks import is_our_error
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "Over gRPC, errors with status 413, 503 and 504 become UNKNOWN, which no client sends again."
)
UPSTREAM = "unreported; tests/patches/test_grpc_status.py"
AFFECTS = ">=1.7.1,<1.8"

CODES = {
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def apply() -> None:
    """Concerns errors of this runtime alone: those of other models keep UNKNOWN."""

    def grpc_status_code(error: MLServerError) -> grpc.StatusCode:
        if is_our_error(error) and error.status_code in CODES:
            return CODES[error.status_code]
        return original(error)

    original = replace(utils, "_grpc_status_code", grpc_status_code)
