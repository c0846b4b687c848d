"""Bounds on the line and headers of an HTTP request."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..rest.bounded_http import BoundedHttpProtocol
from .replacing import replace

FAULT = (
    "The line and headers of an HTTP request may have any size and take any time: 60 MB of them "
    "take 1.2 GB, and an endless URL holds every other request for seconds."
)
UPSTREAM = "unreported; tests/patches/test_unbounded_heads.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Holds for both HTTP servers, since the head comes before the model is known. They run before
    a model is loaded, so that only connections to come can be of another class."""

    def bounded(cls: type[HttpToolsProtocol], *_: Any, **__: Any) -> HttpToolsProtocol:
        return object.__new__(BoundedHttpProtocol if cls is HttpToolsProtocol else cls)

    replace(HttpToolsProtocol, "__new__", bounded)
