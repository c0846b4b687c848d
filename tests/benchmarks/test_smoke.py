"""The benchmarks run, in their smallest form."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.support.programs import output_of

pytestmark = pytest.mark.slow


def run(module: str, *arguments: str) -> str:
    """Run a benchmark and return its output."""
    variables = {**os.environ, "MINUTES": "0.1", "PYTHONPATH": "tinyvit"}
    return output_of(
        sys.executable, "-m", f"benchmarks.{module}", *arguments, env=variables, timeout=300
    )


def test_bench_measures_a_server_and_the_engine() -> None:
    name = "EfficientNet-Lite0, This runtime, OpenVINO bf16"
    output = run("bench", "--only", name, "--rounds", "1", "--seconds", "1")
    for workload in ("JPEG as it is", "12-megapixel JPEG"):
        assert f"| This runtime | OpenVINO bf16 | {workload} |" in output
    assert "| Engine alone, no server | OpenVINO fp32 |" in output


def test_soak_finds_no_wrong_response() -> None:
    assert " 0 wrong, 0 lost" in run("soak", "--clients", "2")


def test_precision_fp32_costs_nothing() -> None:
    output = run("precision", "--precision", "fp32", "--each", "2")
    assert "18 of 18 crops of 9 photographs keep" in output
    assert "The largest error of a score is 0.0000;" in output


def test_gpu_compares_precisions_with_fp32(small_checkpoint: Path) -> None:
    lines = [row.split(" | ") for row in gpu.rows(small_checkpoint, [1, 3], seconds=0.05)]
    assert [(line[0], line[1]) for line in lines] == [
        ("| fp32", "1"),
        ("| fp32", "3"),
        ("| bf16", "1"),
        ("| bf16", "3"),
    ]
    errors = [float(line[-1].rstrip(" |")) for line in lines]
    assert max(errors[:2]) < 1e-4 and max(errors[2:]) < 0.1
