"""What the settings are worth on this machine: workers, threads, batch sizes, batch times.

One setting at a time is changed from what is shipped; JPEG bodies, the full-size network. Prints a
table of medians over interleaved rounds. Variables such as TINYVIT_ENGINE apply to all of it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from compared import RAW, ours
from inputs import CACHE, ROOT, full_size, write_bodies
from measurement import BenchmarkError, check_wrk
from servers import Server, ServerFailed, check, die_tidily, memory, running

SETTINGS, MODEL_SETTINGS = "settings.json", "model-settings.json"
FIGURES = ("requests/s, 8 clients", "p99 ms, 8", "p50 ms, 1 client", "memory MiB", "ready s")


def variants(work: Path, precision: str) -> list[Server]:
    """The runtime as shipped, and with each of the settings changed."""
    changes: dict[str, tuple[str, dict[str, Any]]] = {"as shipped": (SETTINGS, {})}
    for size in (1, 2, 4, 16):
        changes[f"max_batch_size {size}"] = (MODEL_SETTINGS, {"max_batch_size": size})
    changes["max_batch_time 0.01"] = (MODEL_SETTINGS, {"max_batch_time": 0.01})
    servers = [
        ours(precision, (RAW,), name=name, folder=_changed(work / name, *change))
        for name, change in changes.items()
    ]
    for threads in (1, 2, 4):
        variables = {"TINYVIT_NUM_THREADS": str(threads)}
        servers.append(ours(precision, (RAW,), name=f"num_threads {threads}", variables=variables))
    return servers


def _changed(folder: Path, name: str, change: Mapping[str, Any]) -> Path:
    """A copy of the runtime: a value in a file wins over the environment."""
    copy = folder / "tinyvit"
    shutil.copytree(ROOT / "tinyvit", copy, ignore=shutil.ignore_patterns("__pycache__"))
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | change))
    return copy


def measure(server: Server, seconds: float, work: Path) -> list[float]:
    """The figures of one server, in the order of FIGURES."""
    with running(server, full_size(), work, work) as (process, ready):
        RAW.measure(process, work, 8, 1)
        check(process, RAW, work)
        lone = RAW.measure(process, work, 1, seconds)
        many = RAW.measure(process, work, 8, seconds)
        return [many.rate, many.p99_ms, lone.p50_ms, memory(process), ready]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the settings are worth on this machine.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    check_wrk()
    die_tidily()
    found: dict[str, list[list[float]]] = defaultdict(list)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        work = Path(folder)
        write_bodies(work)
        servers = variants(work, options.precision)
        with running(servers[0], full_size(), work, work):
            pass  # converts the network, so that every measured start finds it
        for _ in range(options.rounds):
            for server in servers:
                found[server.name].append(measure(server, options.seconds, work))
    print(f"| {options.precision} | {' | '.join(FIGURES)} |\n|---{'|--:' * len(FIGURES)}|")
    for name, rows in found.items():
        medians = [median(column) for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in medians)} |")


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
