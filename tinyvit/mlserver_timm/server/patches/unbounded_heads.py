"""Bounds on what surrounds the body of an HTTP request, and on the wait for its answer to be
taken."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlserver_timm.server.http_protocol import BoundedHttpProtocol
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "The line, headers and trailers of an HTTP request may have any size and take any time: 60 MB "
    "of them take 1.2 GB, and an endless URL holds every other request for seconds; requests that "
    "wait on their connection are read in thousands, and an answer may wait for ever."
)
UPSTREAM = "unreported; tests/patches/test_unbounded_heads.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Holds for both HTTP servers, since all this comes before the model is known. They run before
    a model is loaded, so that only connections to come can be of another class."""

    def bounded(cls: type[HttpToolsProtocol], *_: Any, **__: Any) -> HttpToolsProtocol:
        return object.__new__(BoundedHttpProtocol if cls is HttpToolsProtocol else cls)

    replace(HttpToolsProtocol, "__new__", bounded)
