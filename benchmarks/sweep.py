"""What each setting is worth on this machine: threads, batch sizes, batch times.

Changes one setting at a time from what is shipped; JPEG bodies, the full-size network. Prints a
table of medians over interleaved rounds. Variables such as TINYVIT_ENGINE apply to all of it.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import median

from benchmarks.compared import RAW, ours
from benchmarks.networks import ROOT, full_size
from benchmarks.servers import Server, check, memory, running, workspace

FIGURES = ("requests/s, 8 clients", "p99 ms, 8", "p50 ms, 1 client", "memory MiB", "ready s")
CHANGES: tuple[dict[str, float], ...] = (
    {},
    *({"max_batch_size": size} for size in (1, 2, 8, 16)),
    {"max_batch_time": 0.01},
)
"""Values of model-settings.json."""


def variants(work: Path, precision: str) -> list[Server]:
    """Return the runtime as shipped, and with each of the settings changed."""
    servers = []
    for change in CHANGES:
        name = " ".join(f"{key} {value}" for key, value in change.items()) or "as shipped"
        folder = _copy(work / name / "tinyvit", change)
        servers.append(ours(precision, (RAW,), name=name, folder=folder))
    for threads in ("1", "2", "4"):
        variables = {"TINYVIT_NUM_THREADS": threads}
        servers.append(ours(precision, (RAW,), name=f"num_threads {threads}", variables=variables))
    return servers


def _copy(folder: Path, change: dict[str, float]) -> Path:
    """Copy the runtime with other settings: a value in a file overrides the environment."""
    shutil.copytree(ROOT / "tinyvit", folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def measure(server: Server, seconds: float, work: Path) -> list[float]:
    """Return the figures of one server in the order of FIGURES."""
    with running(server, full_size(), work, work) as (process, ready):
        RAW.measure(process, work, 8, 1)
        check(process, RAW, work)
        one = RAW.measure(process, work, 1, seconds)
        eight = RAW.measure(process, work, 8, seconds)
        return [eight.rate, eight.p99_ms, one.p50_ms, memory(process), ready]


def main() -> None:
    """Measure all variants in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    results: dict[str, list[list[float]]] = defaultdict(list)
    with workspace() as work:
        servers = variants(work, options.precision)
        with running(servers[0], full_size(), work, work):
            pass  # converts the network, so that every measured start finds it in the cache
        for _ in range(options.rounds):
            for server in servers:
                results[server.name].append(measure(server, options.seconds, work))
    print(f"| {options.precision} | {' | '.join(FIGURES)} |\n|---{'|--:' * len(FIGURES)}|")
    for name, rows in results.items():
        medians = [median(column) for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in medians)} |")


if __name__ == "__main__":
    main()
