"""benchmarks/timeline.py in a real server: every step of a request is seen."""

from pathlib import Path

import pytest
from compared import BASE64, RAW
from inputs import write_bodies
from profile_request import means, timeline_of
from servers import Way

STEPS = {
    "uvicorn: parse and send HTTP",
    "middleware: PrometheusMiddleware",
    "middleware: RequestLimitsMiddleware",
    "Starlette: routing and endpoint",
    "MLServer: data plane and its metrics",
    "body read (JSON, base64, pydantic)",
    "codec: the request",
    "this runtime: pipeline",
    "JPEG: header",
    "JPEG: decode",
    "resize",
    "crop and copy",
    "hand-over between threads, and the queue",
    "engine",
    "codec: best labels and the response",
    "JSON of the response",
    "metrics of this runtime",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_bodies(folder)
    return folder


@pytest.mark.parametrize("way", [RAW, BASE64], ids=["raw", "base64"])
def test_every_step_is_seen(way: Way, work: Path) -> None:
    steps = means(timeline_of(way, 4, work))
    assert set(steps) >= STEPS
    assert all(steps[name] > 0 for name in STEPS)
    assert steps["engine"] > steps["codec: the request"]
