"""An engine that fails costs one answer, and everybody else is served."""

from pathlib import Path

import pytest

from tests.support.clients import assert_refused, assert_sane, body, infer, tensor
from tests.support.servers import Serve, settings as copy_with_workers

ENGINE_FAILS = """

_works = OpenVINOEngine._infer


def _infer(self, request, pixels, outputs):
    if len(pixels) == 1 and (pixels == 13).all():
        raise RuntimeError("no such kernel")
    return _works(self, request, pixels, outputs)


OpenVINOEngine._infer = _infer
"""


@pytest.mark.parametrize("count", [0, 1])
def test_engine_failure_is_one_answer(serve: Serve, tmp_path: Path, count: int) -> None:
    """500 for whom it concerns, the reason in the log only, and everybody else is served."""
    folder = copy_with_workers(tmp_path, count)
    path = folder / "mlserver_timm" / "inference" / "engines" / "openvino_engine.py"
    with open(path, "a") as engine:
        engine.write(ENGINE_FAILS)
    server = serve(folder=folder)
    unlucky = body(tensor([13] * 3 * 8 * 8, [8, 8, 3], "UINT8"))
    assert "kernel" not in assert_refused(infer(server, unlucky), 500)
    assert "no such kernel" in server.output()
    assert_sane(server)
