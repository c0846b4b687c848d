"""`make bench`: this runtime, its peers and the bare engine, measured in turn on this machine.

Each round starts every server once, one at a time, so that none competes with another and memory
is its own; asks it in every way it can be asked, by one client and by eight; and ends it. Figures
are medians over the rounds. Writes results.json, results.md, imgs/benchmark.svg and the part of
README.md between its benchmark comments.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from inputs import CACHE, checkpoint, write_bodies
from report import ALL_LANES, LIMIT, Results, write
from servers import (
    BF16,
    BIG,
    FP32,
    HF,
    Server,
    ServerFailed,
    check,
    compared,
    die_tidily,
    memory,
    running,
)

from load import BenchmarkError, Measurement, bare, check_wrk

CLIENTS = (1, 8)
WARM_UP = 1.0
"""Seconds of load by eight clients before a server is measured in a new way."""

QUIET = 0.1
"""Share of the processor that others may take before there is a warning."""


class Bench:
    """One run: what it works on, and what it has found."""

    def __init__(self, servers: list[Server], seconds: float, work: Path) -> None:
        self._servers = servers
        self._seconds = seconds
        self._work = work
        self._checkpoint = checkpoint()
        self._labels: dict[str, list[str]] = {}
        self.results: Results = defaultdict(lambda: defaultdict(list))
        write_bodies(work)

    def cold(self) -> None:
        """Starts this runtime with nothing converted yet; later starts find the cache."""
        if FP32 in self._servers:
            with running(FP32, self._checkpoint, self._place(FP32)) as (_, ready):
                self.results[FP32.name, ""]["cold_s"].append(ready)

    def round(self) -> None:
        """Every server once, and the engines."""
        for server in list(self._servers):
            try:
                self._serve(server)
            except (BenchmarkError, ServerFailed) as error:
                if server is not HF:
                    raise
                self._leave_out(server, error)
        for server in (FP32, BF16):
            if server in self._servers:
                self._limit(server)

    def _serve(self, server: Server) -> None:
        with running(server, self._checkpoint, self._place(server)) as (process, ready):
            self.results[server.name, ""]["ready_s"].append(ready)
            print(f"  {server.name}: ready after {ready:.1f} s", flush=True)
            for way in server.ways:
                way.measure(process, self._work, max(CLIENTS), WARM_UP)
                self._agree(server, check(process, way, self._work))
                for clients in CLIENTS:
                    measured = way.measure(process, self._work, clients, self._seconds)
                    self._note(server.name, way.name, clients, measured)
            self.results[server.name, ""]["memory_mib"].append(memory(process))
            if server is FP32:
                BIG.measure(process, self._work, 1, WARM_UP)
                measured = BIG.measure(process, self._work, 1, self._seconds)
                self._note(server.name, BIG.name, 1, measured)

    def _leave_out(self, server: Server, error: Exception) -> None:
        """Goes on without a server that depends on an environment of somebody else's making."""
        print(f"{server.name} is left out: {error}", file=sys.stderr)
        self._servers.remove(server)
        for key in [key for key in self.results if key[0] == server.name]:
            del self.results[key]

    def _agree(self, server: Server, labels: list[str]) -> None:
        """Servers that compute exactly must name the same things."""
        if not server.exact:
            return
        first, expected = next(iter(self._labels.items()), (server.name, labels))
        if labels != expected:
            raise BenchmarkError(f"{first} says {expected}, but {server.name} says {labels}.")
        self._labels[server.name] = labels

    def _limit(self, server: Server) -> None:
        precision = server.variables["TINYVIT_PRECISION"]
        cache = self._place(server) / "cache"
        measured = bare(self._checkpoint, precision, self._seconds, cache)
        self._note(LIMIT.format(precision), ALL_LANES, 8, measured)

    def _note(self, name: str, way: str, clients: int, measured: Measurement) -> None:
        if not measured.requests:
            raise BenchmarkError(f"{name}, {way}: no answer in {self._seconds:g} s.")
        row = self.results[name, way]
        row[f"rate_{clients}"].append(measured.rate)
        row[f"p50_ms_{clients}"].append(measured.p50_ms)
        row[f"p99_ms_{clients}"].append(measured.p99_ms)
        print(
            f"  {name}, {way}, {clients}: {measured.rate:.1f}/s, p50 {measured.p50_ms:.1f} ms, "
            f"p99 {measured.p99_ms:.1f} ms",
            flush=True,
        )

    def _place(self, server: Server) -> Path:
        """One folder for both precisions: they convert to the same file."""
        return self._work / ("ours" if server in (FP32, BF16) else server.name.replace(" ", "-"))


def busy_share(seconds: float = 2) -> float:
    """The share of the processor that is in use now, when nothing of ours runs; warns, for figures
    from a busy machine mean little."""
    before = _processor_times()
    time.sleep(seconds)
    total, idle = (after - then for after, then in zip(_processor_times(), before, strict=True))
    share = 1 - idle / total if total else 0.0
    if share > QUIET:
        print(f"WARNING: other processes take {share:.0%} of the processor.", file=sys.stderr)
    return share


def _processor_times() -> tuple[int, int]:
    """Ticks in all, and idle ones; nothing where the system does not tell."""
    try:
        times = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0, 0
    return sum(times), times[3] + times[4]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--only", metavar="TEXT", help="servers so named; results are not kept")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    check_wrk()
    die_tidily()
    servers = [s for s in compared() if not options.only or options.only in s.name]
    started, busy = time.monotonic(), []
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        bench = Bench(servers, options.seconds, Path(work))
        bench.cold()
        for number in itertools.islice(itertools.count(1), options.rounds):
            print(f"Round {number} of {options.rounds}", flush=True)
            busy.append(busy_share())
            bench.round()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    if not options.only:
        write(bench.results, options.rounds, options.seconds, busy)


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
