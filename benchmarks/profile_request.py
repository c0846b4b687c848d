"""Where the milliseconds of one request go, step by step, on the bundled sample.

    python benchmarks/profile_request.py [--seconds 10]

A server with a timeline (timeline.py) is asked by one client, one request after the other, for a
raw JPEG and for base64 in JSON; steps are means over the middle four fifths of the requests by
length, so that they add up. Another server, without a timeline, tells what the timeline costs and
how many core-milliseconds a request takes, alone and in a crowd. The engine alone tells what one
stream takes on one thread. Prints a table, and writes profile.json, which simulate.py takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from compared import BASE64, RAW, SAMPLE_FP32, THIS
from inputs import CACHE, SAMPLE, write_bodies
from machine import describe, machine
from measurement import BenchmarkError, bare, check_wrk
from servers import LocalServer, ServerFailed, check, cpu_seconds, die_tidily, free_ports, running

HERE = Path(__file__).resolve().parent
WAYS = (RAW, BASE64)
WARM_UP = 20
"""Requests that are not counted, those included that check the answer."""

Steps = dict[str, float]
"""Milliseconds of a request by step."""


def timeline_of(way: Any, seconds: float, work: Path) -> list[Steps]:
    """The requests that one client makes one after the other in so many seconds."""
    file = work / "timeline.json"
    with _serving(file, work) as server:
        check(server, way, work)
        way.measure(server, work, 1, seconds)
    requests = [steps for steps in json.loads(file.read_text()) if "engine" in steps]
    return requests[WARM_UP:]


@contextmanager
def _serving(file: Path, work: Path) -> Iterator[LocalServer]:
    ports = free_ports(3)
    names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
    variables = {
        **{name: str(port) for name, port in zip(names, ports, strict=True)},
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_MODEL_URI": str(SAMPLE.checkpoint()),
        "MLSERVER_METRICS_DIR": str(work / "metrics"),
        "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
        "TINYVIT_CACHE_DIR": str(work / "ours" / "cache"),
    }
    log = work / "timeline.log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "timeline.py"), str(file), str(SAMPLE_FP32.folder)],
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=work,
            start_new_session=True,
        )
    server = LocalServer(process, *ports, log)
    try:
        yield server.wait(model="tinyvit")
        server.stop()
    finally:
        server.kill()


def means(requests: Sequence[Steps]) -> Steps:
    """Of each step, over the middle four fifths of the requests by length: largest first."""
    if len(requests) < 10:
        raise BenchmarkError(f"Only {len(requests)} requests were answered; give it more seconds.")
    ordered = sorted(requests, key=lambda steps: sum(steps.values()))
    tenth = len(ordered) // 10
    middle = ordered[tenth : len(ordered) - tenth]
    names = dict.fromkeys(name for steps in middle for name in steps)
    found = {name: fmean(steps.get(name, 0) for steps in middle) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def without_timeline(seconds: float, work: Path) -> dict[str, Any]:
    """How long a lone request takes, and the core-ms of one, for each way; and the start."""
    found: dict[str, Any] = {}
    with running(SAMPLE_FP32, SAMPLE.checkpoint(), work / "ours", work) as (server, ready):
        found["ready_s"] = ready
        for way in WAYS:
            way.measure(server, work, 8, 1)
            check(server, way, work)
            for clients in (1, 8):
                before = cpu_seconds(server)
                measured = way.measure(server, work, clients, seconds)
                spent = 1000 * (cpu_seconds(server) - before) / measured.requests
                found[f"{way.name}, {clients}"] = {
                    "rate": measured.rate,
                    "p50_ms": measured.p50_ms,
                    "core_ms": spent,
                }
    return found


def table(steps: dict[str, Steps], plain: dict[str, Any]) -> str:
    """A line a step, largest first for a raw JPEG."""
    first = steps[RAW.name]
    whole = sum(first.values())
    names = dict.fromkeys(name for found in steps.values() for name in found)
    lines = [f"| step, ms | {' | '.join(steps)} | share of {RAW.name} |"]
    lines.append("|---|" + "--:|" * (len(steps) + 1))
    for name in names:
        cells = [f"{found.get(name, 0):.3f}" for found in steps.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {first.get(name, 0) / whole:.1%} |")
    totals = [f"{sum(found.values()):.3f}" for found in steps.values()]
    lines.append(f"| **all, with the timeline** | {' | '.join(totals)} | 100 % |")
    cells = [f"{1000 / plain[f'{name}, 1']['rate']:.3f}" for name in steps]
    lines.append(f"| all, without it | {' | '.join(cells)} | |")
    for clients in (1, 8):
        cells = [f"{plain[f'{name}, {clients}']['core_ms']:.2f}" for name in steps]
        crowd = "1 client" if clients == 1 else f"{clients} clients"
        lines.append(f"| core-ms a request, {crowd} | {' | '.join(cells)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--out", type=Path, default=HERE / "profile.json")
    options = parser.parse_args()
    check_wrk()
    die_tidily()
    started = time.monotonic()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        work = Path(folder)
        write_bodies(work)
        with running(SAMPLE_FP32, SAMPLE.checkpoint(), work / "ours", work):
            pass  # converts the network
        plain = without_timeline(options.seconds, work)
        steps = {way.name: means(timeline_of(way, options.seconds, work)) for way in WAYS}
        cache = work / "ours" / "cache"
        engine = bare(SAMPLE.checkpoint(), "fp32", options.seconds, cache)
    facts = machine()
    content = {
        "machine": facts,
        "steps": steps,
        "plain": plain,
        "engine": {"rate": engine.rate, "p50_ms": engine.p50_ms},
    }
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"{table(steps, plain)}\n\n{THIS}, {SAMPLE.description}, one client. {describe(facts)}.")
    print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
