"""A refused gRPC request does not stay in memory."""

from mlserver.errors import MLServerError
from mlserver.grpc import utils

from mlserver_timm.server.patches.refusal_tracebacks import is_our_error
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "What a gRPC call refused stays until garbage is collected: gRPC's call keeps the error it was "
    "ended with, whose traceback keeps the request, which keeps the call."
)
UPSTREAM = "unreported; tests/patches/test_grpc_kept_requests.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Concerns errors of this runtime alone; the message itself is let go of by HeldMessages."""

    def grpc_status_code(error: MLServerError) -> object:
        if is_our_error(error):
            _forget_frames(error)
        return original(error)

    original = replace(utils, "_grpc_status_code", grpc_status_code)


def _forget_frames(error: BaseException) -> None:
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__context__
