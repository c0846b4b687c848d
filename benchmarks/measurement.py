"""Load on one server, and what it shows: wrk for HTTP, grpc_load.py for gRPC."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 180
"""Seconds that one measurement may take, its start and the last answers included."""


class BenchmarkError(RuntimeError):
    """A benchmark cannot be run, or what was measured does not count."""


@dataclass(frozen=True)
class Measurement:
    """Times of requests in milliseconds, as the client saw them."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def check_wrk() -> None:
    """Raises BenchmarkError where wrk is not installed."""
    if not shutil.which("wrk"):
        raise BenchmarkError(
            "The benchmark needs wrk, and it is not installed: apt-get install wrk (Debian, "
            "Ubuntu), brew install wrk (macOS)."
        )


def http(
    url: str, body: Path, headers: Mapping[str, str], clients: int, seconds: float
) -> Measurement:
    """`clients` connections kept alive, each asking again as soon as it is answered."""
    return run(
        ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"]
        + ["-s", str(HERE / "wrk.lua"), url, "--", str(body)]
        + [f"{name}: {value}" for name, value in headers.items()]
    )


def grpc(address: str, model: str, picture: Path, clients: int, seconds: float) -> Measurement:
    """The same over gRPC, BYTES as they are."""
    arguments = [address, model, str(picture), str(clients), str(seconds)]
    return run([sys.executable, str(HERE / "grpc_load.py"), *arguments])


def bare(
    checkpoint: Path, precision: str, seconds: float, cache: Path, picture: Path | None = None
) -> Measurement:
    """The engine alone, or with the decoding of `picture`: images a second, and the times of
    each."""
    arguments = [str(checkpoint), precision, str(seconds), str(cache)]
    arguments += [str(picture)] if picture else []
    return run([sys.executable, str(HERE / "bare_engine.py"), *arguments])


def run(command: list[str]) -> Measurement:
    """What the command prints after JSON; raises BenchmarkError unless all was answered well."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{' '.join(command)} took over {PATIENCE} seconds.") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("JSON ")]
    if done.returncode or not lines:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    measured = Measurement(**json.loads(lines[-1].removeprefix("JSON ")))
    if measured.errors:
        raise BenchmarkError(
            f"{' '.join(command)}: {measured.errors} of {measured.requests} requests went wrong."
        )
    return measured
