"""`mlserver start` that keeps a timeline of each request: what it is at from moment to moment.

    python timeline.py FILE FOLDER

Functions at the borders between steps are wrapped so that they note the time when a step begins and
when the one around it goes on; each moment of a request then belongs to just one step, on whichever
thread, and the steps add up to the whole. That holds for one request at a time only. Some forty
notes of 0.3 microseconds each are taken a request. FILE gets, at the end, a list of requests: each
`{step: milliseconds}`.
"""

import atexit
import functools
import importlib
import inspect
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

OUTSIDE = "client, kernel and event loop"
HAND_OVER = "hand-over between threads, and the queue"
UVICORN = "uvicorn: parse and send HTTP"
ROUTING = "Starlette: routing and endpoint"

STEPS = {
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.data_received": UVICORN,
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.run_asgi": UVICORN,
    "timm_runtime.rest.inference_requests:read_request": "body read (JSON, base64, pydantic)",
    "timm_runtime.rest.classify_requests:read_classify": "body read (JSON, base64, pydantic)",
    "timm_runtime.rest.inference_responses:encode": "JSON of the response",
    "mlserver.rest.responses:Response.render": "JSON of the response",
    "mlserver.handlers.dataplane:DataPlane.infer": "MLServer: data plane and its metrics",
    "timm_runtime.codec:decode_request": "codec: the request",
    "timm_runtime.codec:encode_response": "codec: best labels and the response",
    "timm_runtime.codec:rankings": "codec: best labels and the response",
    "timm_runtime.metrics:RuntimeMetrics.observe": "metrics of this runtime",
    "timm_runtime.pipeline:InferencePipeline.infer": "this runtime: pipeline",
    "timm_runtime.transforms:EvaluationTransform.__call__": "crop and copy",
    "timm_runtime.images:open_image": "JPEG: header",
    "timm_runtime.images:UndecodedFile.decode": "JPEG: decode",
    "PIL.Image:Image.resize": "resize",
    "timm_runtime.batcher:Batcher._compute": "this runtime: a batch put together",
    "timm_runtime.engines.openvino_engine:OpenVINOEngine.infer_latency": "engine",
    "timm_runtime.engines.openvino_engine:OpenVINOEngine.infer_throughput": "engine",
}
"""Where each step begins."""


class Timeline:
    """The requests so far, and the step that the present one is at."""

    def __init__(self) -> None:
        self.requests: list[dict[str, float]] = []
        self.step = OUTSIDE
        self._present: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def enter(self, step: str) -> str:
        """From now on time belongs to this step; returns the one before."""
        now = time.perf_counter()
        before = self.step
        self._present[before] += 1000 * (now - self._since)
        self.step, self._since = step, now
        return before

    def finish(self) -> None:
        """The request's answer has been handed to the socket."""
        self.enter(OUTSIDE)
        self.requests.append(dict(self._present))
        self._present.clear()

    def timed(self, function: Callable[..., Any], step: str) -> Callable[..., Any]:
        """The function, in its own step."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                before = self.enter(step)
                try:
                    return await function(*args, **kwargs)
                finally:
                    self.enter(before)
        else:

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                before = self.enter(step)
                try:
                    return function(*args, **kwargs)
                finally:
                    self.enter(before)

        return run


class TimedApp:
    """An ASGI application in a step of its own; what it sends goes out through `outer`."""

    def __init__(self, app: Any, step: str, outer: str, timeline: Timeline) -> None:
        self._app, self._step, self._outer, self._timeline = app, step, outer, timeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        timed = self._timeline.timed
        app = timed(self._run, self._step)
        await app(scope, timed(receive, self._outer), timed(send, self._outer))

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def middleware_timed(outermost: Any, timeline: Timeline) -> Any:
    """A middleware stack with each layer in a step of its own."""
    layers = [outermost]
    while name := _inner(layers[-1]):
        layers.append(getattr(layers[-1], name))
    steps = [UVICORN, *(f"middleware: {type(layer).__name__}" for layer in layers[:-1]), ROUTING]
    timed: Any = None
    for layer, step, outer in reversed(list(zip(layers, steps[1:], steps, strict=False))):
        if timed is not None:
            setattr(layer, _inner(layer), timed)
        timed = TimedApp(layer, step, outer, timeline)
    return timed


def _inner(layer: Any) -> str:
    """The attribute in which a middleware has the application that it wraps; else empty."""
    return next((name for name in ("app", "_app") if name in vars(layer)), "")


def find(target: str) -> tuple[Any, str, Callable[..., Any]]:
    """Owner, name and function of `module:qualified.name`; raises AttributeError."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    return owner, name, getattr(owner, name)


def instrument(timeline: Timeline) -> None:
    """Wraps the functions where steps begin, wherever they are already known by name."""
    for target, step in STEPS.items():
        owner, name, function = find(target)
        timed = timeline.timed(function, step)
        setattr(owner, name, timed)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is function:
                setattr(module, name, timed)
    _in_threads(timeline)
    _in_applications(timeline)
    _until_sent(timeline)


def _in_threads(timeline: Timeline) -> None:
    submit = ThreadPoolExecutor.submit

    def timed_submit(self: ThreadPoolExecutor, run: Any, *args: Any, **kwargs: Any) -> Any:
        def run_timed() -> Any:
            timeline.enter("this runtime: pipeline")
            try:
                return run(*args, **kwargs)
            finally:
                timeline.enter(HAND_OVER)

        timeline.enter(HAND_OVER)
        return submit(self, run_timed)

    ThreadPoolExecutor.submit = timed_submit  # type: ignore[method-assign]


def _in_applications(timeline: Timeline) -> None:
    from starlette.applications import Starlette

    for kind in (Starlette, *Starlette.__subclasses__()):
        if "build_middleware_stack" in vars(kind):
            build = kind.build_middleware_stack
            kind.build_middleware_stack = lambda app, build=build: middleware_timed(
                build(app), timeline
            )


def _until_sent(timeline: Timeline) -> None:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    run_asgi = RequestResponseCycle.run_asgi

    async def run(self: Any, app: Any) -> None:
        await run_asgi(self, app)
        timeline.finish()

    RequestResponseCycle.run_asgi = run


def main(file: str, folder: str) -> None:
    from mlserver.cli.main import main as mlserver

    timeline = Timeline()
    instrument(timeline)
    atexit.register(lambda: Path(file).write_text(json.dumps(timeline.requests)))
    sys.argv = ["mlserver", "start", folder]
    mlserver()


if __name__ == "__main__":
    main(*sys.argv[1:])
