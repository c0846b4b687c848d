"""How throughput grows with cores, with replicas behind nginx, and with models in one server.

    PYTHONPATH=tinyvit python -m benchmarks.scale

Eight clients send the cat as a JPEG to TinyViT-5M. All servers run at once, and one setup at a time
gets load. Prints a table of medians over the rounds.
"""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.compared import RAW, ours
from benchmarks.networks import ROOT, full_size
from benchmarks.servers import Workload, check, memory, running, workspace
from client.local import LocalServer
from mlserver_timm.inference.engines.cpu import available_cores
from tests.support.nginx import Front

CLIENTS = 8
REPLICAS, MODELS = 3, (1, 2, 4)


@dataclass
class Setup:
    """One row of the table."""

    name: str
    servers: Sequence[LocalServer]
    """Servers whose memory is counted."""
    targets: Sequence[tuple[LocalServer, Workload]]
    """Servers that share the clients evenly, each with its workload."""

    def rate(self, seconds: float, work: Path) -> float:
        """Return the answers per second of all clients together."""
        each = CLIENTS // len(self.targets)
        with ThreadPoolExecutor(len(self.targets)) as loads:
            measured = loads.map(
                lambda target: target[1].measure(target[0], work, each, seconds), self.targets
            )
            return sum(one.rate for one in measured)


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let processes that are started meanwhile use this many cores only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def repository(folder: Path, models: int) -> Path:
    """Write a folder with this many models for the installed runtime."""
    for number in range(models):
        (folder / f"m{number}").mkdir(parents=True)
        settings = {"name": f"m{number}", "implementation": "mlserver_timm.TimmClassifier"}
        (folder / f"m{number}" / "model-settings.json").write_text(json.dumps(settings))
    shutil.copy(ROOT / "tinyvit" / "settings.json", folder)
    return folder


def setups(stack: contextlib.ExitStack, work: Path) -> Iterator[Setup]:
    """Start all servers and yield the rows of the table."""

    def start(name: str, **options: object) -> LocalServer:
        server = ours("fp32", (RAW,), name=name, **options)
        return stack.enter_context(running(server, full_size(), work / name, work))[0]

    whole = start("all-cores")
    with on_cores(1):
        one = start("one-core")
    yield Setup("one server on 1 core", [one], [(one, RAW)])
    yield Setup(f"one server on {available_cores()} cores", [whole], [(whole, RAW)])
    replicas = [whole, *(start(f"replica-{number}") for number in range(1, REPLICAS))]
    for count in range(1, REPLICAS + 1):
        folder = work / f"nginx-{count}"
        folder.mkdir()
        ports = [(each.http_port, each.grpc_port) for each in replicas[:count]]
        front = Front(folder, ports, access_log=False)
        stack.callback(front.close)
        entry = replace(whole, http_port=front.http_port)
        yield Setup(f"servers behind nginx: {count}", replicas[:count], [(entry, RAW)])
    for count in MODELS:
        variables = {"PYTHONPATH": str(ROOT / "tinyvit")}
        folder = repository(work / f"models-{count}", count)
        server = start(
            f"{count}-models", folder=folder, variables=variables, ready="/v2/health/ready"
        )
        targets = [
            (server, replace(RAW, path=f"/v2/models/m{number}/classify")) for number in range(count)
        ]
        yield Setup(f"models in one server: {count}", [server], targets)


def main() -> None:
    """Measure all setups in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    options = parser.parse_args()
    with workspace() as work, contextlib.ExitStack() as stack:
        rows = list(setups(stack, work))
        for row in rows:
            for server, workload in row.targets:
                check(server, workload, work)
            row.rate(1, work)
        rates = [[row.rate(options.seconds, work) for row in rows] for _ in range(options.rounds)]
        print("| TinyViT-5M, eight clients | requests/s | memory MiB |\n| --- | --: | --: |")
        for row, each in zip(rows, zip(*rates, strict=True), strict=True):
            used = sum(map(memory, row.servers))
            print(f"| {row.name} | {median(each):.1f} | {used:.0f} |")


if __name__ == "__main__":
    main()
