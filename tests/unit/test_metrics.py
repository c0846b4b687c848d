"""Each refusal is counted, and a flood gets one log line per second."""

import pytest
from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from prometheus_client import REGISTRY

from mlserver_timm import metrics
from mlserver_timm.errors import QueueFull
from mlserver_timm.metrics import RuntimeMetrics


def test_a_flood_gets_one_line_per_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are counted; other refusals still have their lines."""
    now = 50.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    runtime = RuntimeMetrics(ModelSettings(name="flooded", implementation="mlserver.MLModel"))
    for seconds, identifier in ((0, "a"), (0.2, "b"), (0.7, "c"), (0.3, "d"), (2, "e")):
        now += seconds
        for error in (QueueFull(8), MLServerError("No.")):
            with pytest.raises(MLServerError), runtime.request(identifier):
                raise error
    written = [record.getMessage() for record in caplog.records]
    assert [line for line in written if line.endswith("No.")] == [
        f"refused request {identifier}: No." for identifier in "abcde"
    ]
    assert [line for line in written if not line.endswith("No.")] == [
        f"refused request a: {QueueFull(8)}",
        f"refused request d: {QueueFull(8)} (2 more refused since)",
        f"refused request e: {QueueFull(8)}",
    ]
    labels = {"model_name": "flooded", "model_version": ""}
    for name, count in (("busy", 5), ("invalid", 5), ("timeout", 0)):
        sample = f"tinyvit_refused_{name}_requests_count"
        assert REGISTRY.get_sample_value(sample, labels) == count
