"""Beyond the protocol: one POST with a picture as its body, and the page that uses it."""

import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, Query
from mlserver.errors import MLServerError
from mlserver.handlers.custom import CustomHandler, register_custom_handler
from starlette.requests import Request
from starlette.responses import HTMLResponse

from classifier import SERVED, Classifier

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
UNAVAILABLE = "The model '{}' is not loaded. Try again in a moment."
PAGE = Path(__file__).with_name("page.html")


async def body(request: Request) -> bytes:
    """The request's body, whatever its content type says; raises MLServerError for a form."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise MLServerError(
            "Send the picture itself as the body, not a form: curl --data-binary @picture.jpg URL."
        )
    return await request.body()


Body = Depends(body)
TopK = Query(None, description="How many labels to answer, best first; 5 if not given.")


def publish(method: Callable[..., Any], path: str, verb: str) -> Callable[..., Any]:
    """`method` as a custom handler at a path that is known only at run time; to be kept as an
    attribute of the model under the method's own name, where MLServer finds it."""
    handler = functools.partial(method)
    functools.update_wrapper(handler, method)
    register_custom_handler(CustomHandler(rest_path=path, rest_method=verb), handler)
    return handler


def served(model_name: str) -> Classifier:
    """The classifier that takes requests now. MLServer gives a custom route to a model before it
    is loaded, while another may still be serving, or come back if the new one cannot be loaded."""
    try:
        return SERVED[model_name]
    except KeyError:
        raise MLServerError(UNAVAILABLE.format(model_name), 503) from None


def page(model_name: str) -> HTMLResponse:
    """The page to drop pictures on."""
    text = PAGE.read_text(encoding="utf-8").replace("{{model}}", html.escape(model_name))
    return HTMLResponse(text, headers=HEADERS)
