"""Closed-loop load on one server, measured by the client: wrk for HTTP, grpc_load.py for gRPC."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.networks import ROOT

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
TIMEOUT = 180
"""Maximum duration of one measurement in seconds, its start and the last responses included."""


class BenchmarkError(RuntimeError):
    """A benchmark cannot run, or a measurement is not valid."""


@dataclass(frozen=True)
class Measurement:
    """Latencies in milliseconds, as the client sees them."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def check_wrk() -> None:
    """Raise BenchmarkError unless wrk is installed."""
    if not shutil.which("wrk"):
        raise BenchmarkError("Missing program wrk: run `make programs` or apt-get install wrk.")


def http(
    url: str, body: Path, headers: Mapping[str, str], clients: int, seconds: float
) -> Measurement:
    """Measure `clients` keep-alive connections that each repeat one request."""
    return run(
        ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"]
        + ["-s", str(WRK_SCRIPT), url, "--", str(body)]
        + [f"{name}: {value}" for name, value in headers.items()]
    )


def grpc(address: str, model: str, image: Path, clients: int, seconds: float) -> Measurement:
    """Measure the same over gRPC, with the image as raw BYTES."""
    return python("grpc_load", address, model, str(image), str(clients), str(seconds))


def engine_only(
    checkpoint: Path, precision: str, seconds: float, cache: Path, *image: Path
) -> Measurement:
    """Measure the engine without a server; given an image, with its decoding and resizing."""
    paths = [str(path) for path in image]
    return python("bare_engine", str(checkpoint), precision, str(seconds), str(cache), *paths)


def python(module: str, *arguments: str) -> Measurement:
    """Run one of the benchmark's own load generators."""
    return run([sys.executable, "-m", f"benchmarks.{module}", *arguments])


def run(command: list[str]) -> Measurement:
    """Return what the command prints after JSON.

    Raises BenchmarkError if the command fails or any request does.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=ROOT
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("JSON ")]
    if done.returncode or not lines:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    measured = Measurement(**json.loads(lines[-1].removeprefix("JSON ")))
    if measured.errors or not measured.requests:
        raise BenchmarkError(
            f"{' '.join(command)}: {measured.errors} of {measured.requests} requests failed."
        )
    return measured


def report(latencies: list[float], seconds: float) -> None:
    """Print what wrk.lua prints; latencies are in seconds."""
    import numpy as np

    p50, p99 = 1000 * np.percentile(latencies, [50, 99])
    print("JSON", json.dumps(vars(Measurement(len(latencies), seconds, p50, p99, errors=0))))
