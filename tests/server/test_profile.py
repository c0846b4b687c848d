"""benchmarks/timeline.py in a real server: every step of a request is seen."""

import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from compared import BASE64, RAW
from inputs import write_bodies
from profile_request import means, timeline_of
from servers import Way

pytestmark = pytest.mark.alone

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


@pytest.mark.parametrize("way", [RAW, BASE64], ids=["raw", "base64"])
def test_every_step_is_seen(way: Way, tmp_path: Path) -> None:
    write_bodies(tmp_path)
    steps = means(timeline_of(way, 10, tmp_path))
    assert set(steps) >= STEPS
    assert all(steps[name] > 0 for name in STEPS)
    assert steps["engine"] > steps["codec: the request"]
