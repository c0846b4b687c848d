"""A failing engine costs one answer; the log has the reason, the client does not."""

from typing import Any

import pytest

from mlserver_timm.inference.engines.openvino_engine import OpenVINOEngine
from tests.support.app import App
from tests.support.clients import assert_refused, assert_sane, body, infer, tensor


def test_engine_failure_is_one_answer(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    working = OpenVINOEngine._infer

    def fail_for_13(self: OpenVINOEngine, request: Any, pixels: Any, outputs: Any) -> Any:
        if len(pixels) == 1 and (pixels == 13).all():
            raise RuntimeError("no such kernel")
        return working(self, request, pixels, outputs)

    monkeypatch.setattr(OpenVINOEngine, "_infer", fail_for_13)
    unlucky = body(tensor([13] * 3 * 8 * 8, [8, 8, 3], "UINT8"))
    assert "kernel" not in assert_refused(infer(app, unlucky), 500)
    assert "no such kernel" in caplog.text
    assert_sane(app)
