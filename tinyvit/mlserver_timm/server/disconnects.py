"""Clients that have gone away."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlserver_timm.server.served_models import ServedModels


class DisconnectMiddleware:
    """Gives up the work for clients that have gone away, which MLServer finishes for nobody."""

    def __init__(self, app: ASGIApp, served: ServedModels) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] in ("GET", "HEAD")
            or not self._served.model_for_request(scope)
        ):
            await self._app(scope, receive, send)
            return
        client = _Client(receive)
        try:
            await self._app(scope, client.receive, send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not client.gone.is_set():
                raise
        finally:
            client.forget()


class _Client:
    """What is heard of a client after its body; its leaving cancels the task that serves it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        if self._watcher:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        if self._task:
            self._task.cancel()

    def forget(self) -> None:
        if self._watcher:
            self._watcher.cancel()
