"""`make bench`: this runtime, its peers and the bare engine, measured in turn on this machine.

Each round starts every server once, one at a time: none competes with another, and its memory is
its own. Every workload is measured with one client and with eight. Figures are medians over the
rounds. Writes imgs/benchmark.svg and the parts of docs/performance.md between benchmark comments.
"""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path

import requests

from benchmarks import environments, report
from benchmarks.compared import BIG, COMPARED, FP32, RAW, THIS
from benchmarks.load import BenchmarkError, Measurement, engine_only
from benchmarks.networks import TINYVIT, Network
from benchmarks.payloads import IMAGE
from benchmarks.results import BARE, PIXELS, WITH_DECODING, Row
from benchmarks.servers import Server, check, cpu_seconds, memory, running, workspace
from client.local import LocalServer, ServerFailed

CLIENTS = (1, 8)
WARM_UP = 1.0
"""Seconds of load by eight clients before a workload is measured."""

BUSY = 0.1
"""Share of CPU time used by other processes from which on there is a warning."""

FAILURES = (BenchmarkError, ServerFailed, subprocess.SubprocessError, requests.RequestException)
"""What leaves a peer out."""


class Bench:
    """One run and its results."""

    def __init__(self, servers: list[tuple[Network, Server]], seconds: float, work: Path) -> None:
        self._servers = servers
        self._seconds = seconds
        self._work = work
        self._labels: dict[Network, list[str]] = {}
        """The correct response for each network."""
        self.results: dict[Row, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.failed: dict[str, str] = {}
        """Peers that failed, and why."""

    @property
    def _networks(self) -> list[Network]:
        return list(dict.fromkeys(network for network, _ in self._servers))

    def convert(self) -> None:
        """Start this runtime with an empty cache, note its labels, export networks for peers."""
        for network in self._networks:
            with self._running(network, FP32) as (process, ready):
                self._note(Row(network.name, THIS, FP32.engine), "cold_s", ready)
                self._labels[network] = check(process, RAW, self._work)
            network.exported(self._work / "exported")

    def round(self) -> None:
        """Measure every server once, and the engines."""
        for network, server in self._servers:
            if _name(server) not in self.failed:
                self._measure_server(network, server)
        for network in self._networks:
            self._measure_engine(network)

    def _measure_server(self, network: Network, server: Server) -> None:
        """Measure one server; a peer that fails is left out, with its figures of earlier rounds."""
        try:
            if server.environment:
                environments.ensure(server.environment)
            self._measure_workloads(network, server)
        except FAILURES as error:
            if server.name == THIS:
                raise
            print(f"{_name(server)} is left out: {error}", file=sys.stderr, flush=True)
            self.failed[_name(server)] = str(error).strip().splitlines()[0][:200]
            for row in [r for r in self.results if _name(r) == _name(server)]:
                del self.results[row]

    def _measure_workloads(self, network: Network, server: Server) -> None:
        whole = Row(network.name, server.name, server.engine)
        with self._running(network, server) as (process, ready):
            self._note(whole, "ready_s", ready)
            for workload in server.workloads:
                row = whole.with_workload(workload.name)
                workload.measure(process, self._work, max(CLIENTS), WARM_UP)
                labels = check(process, workload, self._work)
                if server.exact and labels != self._labels[network]:
                    raise BenchmarkError(f"{row}: {labels} instead of {self._labels[network]}.")
                for clients in CLIENTS:
                    before = cpu_seconds(process)
                    measured = workload.measure(process, self._work, clients, self._seconds)
                    self._note_measurement(row, clients, measured)
                    core_ms = 1000 * (cpu_seconds(process) - before) / measured.requests
                    self._note(row, f"core_ms_{clients}", core_ms)
            self._note(whole, "memory_mib", memory(process))
            if (network, server) == (TINYVIT, FP32):
                BIG.measure(process, self._work, 1, WARM_UP)
                measured = BIG.measure(process, self._work, 1, self._seconds)
                self._note_measurement(whole.with_workload(BIG.name), 1, measured)

    def _running(
        self, network: Network, server: Server
    ) -> AbstractContextManager[tuple[LocalServer, float]]:
        model = network.checkpoint()
        if server.takes_exported:
            model = network.exported(self._work / "exported")
        folder = "ours" if server.name == THIS else _name(server).replace(" ", "-")
        return running(server, model, self._work / folder, self._work)

    def _measure_engine(self, network: Network) -> None:
        checkpoint, cache = network.checkpoint(), self._work / "ours" / "cache"
        for precision, workload, image in (
            ("fp32", PIXELS, []),
            ("bf16", PIXELS, []),
            ("fp32", WITH_DECODING, [IMAGE]),
        ):
            row = Row(network.name, BARE, f"OpenVINO {precision}", workload)
            measured = engine_only(checkpoint, precision, self._seconds, cache, *image)
            self._note_measurement(row, 8, measured)

    def _note_measurement(self, row: Row, clients: int, measured: Measurement) -> None:
        figures = {name: getattr(measured, name) for name in ("rate", "p50_ms", "p99_ms")}
        for name, value in figures.items():
            self._note(row, f"{name}_{clients}", value)
        values = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        print(f"  {row}, {clients} clients: {values}", flush=True)

    def _note(self, row: Row, figure: str, value: float) -> None:
        self.results[row][figure].append(value)


def _name(server: Server | Row) -> str:
    return f"{getattr(server, 'server', getattr(server, 'name', ''))}, {server.engine}"


def warn_if_busy(seconds: float = 2) -> None:
    """Warn if other processes use the CPU: figures from a busy machine mean little."""
    before = _cpu_ticks()
    time.sleep(seconds)
    total, idle = (after - then for after, then in zip(_cpu_ticks(), before, strict=True))
    if total and 1 - idle / total > BUSY:
        print(f"WARNING: other processes use {1 - idle / total:.0%} of the CPU.", file=sys.stderr)


def _cpu_ticks() -> tuple[int, int]:
    """Return all ticks and idle ticks; zeros without /proc."""
    try:
        ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0, 0
    return sum(ticks), ticks[3] + ticks[4]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--only", metavar="TEXT", default="", help="servers with TEXT in the name")
    parser.add_argument("--quick", action="store_true", help="one round: about 6 minutes")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 3.0
    return options


def main() -> None:
    """Run all rounds; only a whole run is kept in files."""
    options = arguments()
    servers = [
        (network, server)
        for network, server in COMPARED
        if options.only in f"{network.name}, {_name(server)}"
    ]
    with workspace() as work:
        bench = Bench(servers, options.seconds, work)
        bench.convert()
        for number in range(options.rounds):
            print(f"Round {number + 1} of {options.rounds}", flush=True)
            warn_if_busy()
            bench.round()
    whole = not (options.only or options.quick)
    report.write(bench.results, bench.failed, options.rounds, options.seconds, keep=whole)


if __name__ == "__main__":
    main()
