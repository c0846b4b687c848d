"""`make bench`: this runtime, its peers and the bare engine, measured in turn on this machine.

All servers of a network run at once, and one at a time gets load, for a second or two. So a machine
whose speed drifts slows all alike. Every workload is measured with one client and with eight.
Figures are medians over the rounds. Writes imgs/benchmark.svg and the parts of docs/performance.md
between benchmark comments.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import requests

from benchmarks import environments, report
from benchmarks.compared import COMPARED, FP32, RAW, THIS, files
from benchmarks.load import BenchmarkError, Measurement, engine_only
from benchmarks.networks import Network
from benchmarks.payloads import IMAGE
from benchmarks.results import BARE, PIXELS, WITH_DECODING, Row
from benchmarks.servers import (
    Server,
    check,
    cpu_seconds,
    memory,
    running,
    settle,
    workspace,
)
from client.local import LocalServer, ServerFailed

CLIENTS = (1, 8)
WARM_UP = 3.0
"""Seconds of load by eight clients before a workload is measured: a server may need more than one
second until it answers the first of eight photographs of 12 megapixels."""

ENGINE_SECONDS = 5.0
"""Seconds that the bare engine is measured, before and after the servers."""

BUSY = 0.5
"""Load average over a minute from which on there is a warning."""

FAILURES = (BenchmarkError, ServerFailed, subprocess.SubprocessError, requests.RequestException)
"""Errors for which a peer is left out."""


class Bench:
    """One run and its results."""

    def __init__(self, servers: list[tuple[Network, Server]], seconds: float, work: Path) -> None:
        self._servers = servers
        self._seconds = seconds
        self._work = work
        self._labels: dict[tuple[Network, str], list[str]] = {}
        """The correct response for each network and file."""
        self.results: dict[Row, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.failed: dict[str, str] = {}
        """Peers that failed, and why."""

    def run(self, rounds: int) -> None:
        """Measure one network after the other."""
        for network in dict.fromkeys(network for network, _ in self._servers):
            self._convert(network)
            self._measure_engine(network)
            self._measure_network(network, rounds)
            self._measure_engine(network)

    def _convert(self, network: Network) -> None:
        """Start this runtime with an empty cache, note its labels, export the network for peers."""
        with self._running(network, FP32) as (process, ready):
            self._note(Row(network.name, THIS, FP32.engine), "cold_s", ready)
            for workload in files(RAW.path):
                self._labels[network, workload.name] = check(process, workload, self._work)
        network.exported(self._work / "exported")

    def _measure_network(self, network: Network, rounds: int) -> None:
        started: list[tuple[Server, LocalServer]] = []
        with ExitStack() as stack:
            for server in (server for each, server in self._servers if each == network):
                if _name(server) not in self.failed:
                    with self._leaving_out(server):
                        started.append((server, self._start(network, server, stack)))
            for number in range(rounds):
                print(f"{network.name}: round {number + 1} of {rounds}", flush=True)
                first = number % len(started)
                for server, process in started[first:] + started[:first]:
                    with self._leaving_out(server):
                        self._measure_workloads(network, server, process)
                started = [each for each in started if _name(each[0]) not in self.failed]
            for server, process in started:
                row = Row(network.name, server.name, server.engine)
                self._note(row, "memory_mib", memory(process))

    def _start(self, network: Network, server: Server, stack: ExitStack) -> LocalServer:
        """Return the server, ready, warm and with the right labels."""
        if server.environment:
            environments.ensure(server.environment)
        process, ready = stack.enter_context(self._running(network, server))
        self._note(Row(network.name, server.name, server.engine), "ready_s", ready)
        for workload in server.workloads:
            workload.measure(process, self._work, max(CLIENTS), WARM_UP)
            labels = check(process, workload, self._work)
            of_the_cat = self._labels[network, RAW.name]
            expected = self._labels.get((network, workload.name), of_the_cat)
            if server.exact and labels != expected:
                raise BenchmarkError(f"{workload.name}: {labels} instead of {expected}.")
        return process

    @contextmanager
    def _leaving_out(self, server: Server) -> Iterator[None]:
        """Leave out a peer that fails inside, with all its figures."""
        try:
            yield
        except FAILURES as error:
            if server.name == THIS:
                raise
            print(f"{_name(server)} is left out: {error}", file=sys.stderr, flush=True)
            self.failed[_name(server)] = str(error).strip().splitlines()[0][:200]
            for row in [r for r in self.results if _name(r) == _name(server)]:
                del self.results[row]

    def _measure_workloads(self, network: Network, server: Server, process: LocalServer) -> None:
        for workload in server.workloads:
            row = Row(network.name, server.name, server.engine, workload.name)
            for clients in CLIENTS:
                settle(process)
                before, seconds = cpu_seconds(process), self._seconds * workload.turns
                measured = workload.measure(process, self._work, clients, seconds)
                settle(process)
                self._note_measurement(row, clients, measured)
                core_ms = 1000 * (cpu_seconds(process) - before) / measured.requests
                self._note(row, f"core_ms_{clients}", core_ms)

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
            measured = engine_only(checkpoint, precision, ENGINE_SECONDS, cache, *image)
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


def warn_if_busy() -> None:
    """Warn if other processes use the CPU: figures from a busy machine mean little."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"WARNING: other processes use the CPU (load average {load}).", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1, help="of a turn; photographs get two")
    parser.add_argument("--only", metavar="TEXT", default="", help="servers with TEXT in the name")
    parser.add_argument("--quick", action="store_true", help="two rounds: about 10 minutes")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    return options


def main() -> None:
    """Run all rounds; only a whole run is kept in files."""
    options = arguments()
    warn_if_busy()
    servers = [
        (network, server)
        for network, server in COMPARED
        if options.only in f"{network.name}, {_name(server)}"
    ]
    with workspace() as work:
        bench = Bench(servers, options.seconds, work)
        bench.run(options.rounds)
    whole = not (options.only or options.quick)
    report.write(bench.results, bench.failed, options.rounds, options.seconds, keep=whole)


if __name__ == "__main__":
    main()
