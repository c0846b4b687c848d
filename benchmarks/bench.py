"""`make bench`: this runtime, its peers and the bare engine, measured in turn on this machine.

Each round starts every server once, one at a time, so that none competes with another and memory
is its own; asks it in every way it can be asked, by one client and by eight; and ends it. Figures
are medians over the rounds. Writes results.json, results.md, imgs/benchmark.svg and the parts of
README.md and docs/performance.md between benchmark comments.

What was measured is kept after each server: a run that was broken off goes on where it stopped.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import environments
from compared import BIG, FP32, RAW, THIS, compared
from inputs import CACHE, NETWORKS, PICTURE, TINYVIT, Network, write_bodies
from measurement import BenchmarkError, Measurement, bare, check_wrk
from progress import Progress
from report import write
from results import ALONE, BARE, WITH_PICTURE, Row
from servers import (
    LocalServer,
    Server,
    ServerFailed,
    check,
    cpu_seconds,
    die_tidily,
    memory,
    running,
)

CLIENTS = (1, 8)
WARM_UP = 1.0
"""Seconds of load by eight clients before a server is measured in a new way."""

QUIET = 0.1
"""Share of the processor that others may take before there is a warning."""

QUICK = (1, 3.0)
"""Rounds, and seconds of each measurement, of a quick run."""


Running = AbstractContextManager[tuple[LocalServer, float]]


class Bench:
    """One run: what it works on, and what it has found."""

    def __init__(
        self, servers: list[tuple[Network, Server]], seconds: float, progress: Progress
    ) -> None:
        self._servers = servers
        self._seconds = seconds
        self._progress = progress
        self._work = progress.folder
        self._cache = self._work / "ours" / "cache"
        write_bodies(self._work)

    def convert(self) -> None:
        """Starts this runtime with nothing converted yet: later starts find the cache, and all that
        compute exactly the answer to give. Exports the networks for the peers."""
        for network in NETWORKS:
            step = f"first start on {network.name}"
            if not self._progress.done(step):
                with self._running(network, FP32) as (process, ready):
                    self._note(Row(network.name, THIS, FP32.engine), "cold_s", ready)
                    self._progress.labels[network.name] = check(process, RAW, self._work)
                network.exported(self._work / "exported")
                self._progress.finish(step)

    def round(self, number: int) -> None:
        """Every server once, and the engines."""
        for network, server in self._servers:
            step = f"round {number}, {network.name}, {server.name}, {server.engine}"
            if not (self._progress.done(step) or self._is_left_out(server)):
                self._serve(network, server)
                self._progress.finish(step)
        for network in dict.fromkeys(network for network, _ in self._servers):
            step = f"round {number}, engines, {network.name}"
            if not self._progress.done(step):
                self._bare(network)
                self._progress.finish(step)

    def _serve(self, network: Network, server: Server) -> None:
        """Measures one server; goes on without a peer that fails."""
        try:
            if server.environment:
                environments.ensure(server.environment)
            self._ask(network, server)
        except (BenchmarkError, ServerFailed, environments.NotInstalled) as error:
            if server.name == THIS:
                raise
            print(f"{server.name} is left out: {error}", file=sys.stderr, flush=True)
            reason = next(line for line in str(error).splitlines() if line)[:200]
            self._progress.leave_out(server.name, server.engine, reason)

    def _is_left_out(self, server: Server) -> bool:
        return f"{server.name}, {server.engine}" in self._progress.left_out

    def _ask(self, network: Network, server: Server) -> None:
        whole = Row(network.name, server.name, server.engine)
        with self._running(network, server) as (process, ready):
            self._note(whole, "ready_s", ready)
            print(f"  {whole}: ready after {ready:.1f} s", flush=True)
            for way in server.ways:
                row = whole.asked(way.name)
                way.measure(process, self._work, max(CLIENTS), WARM_UP)
                self._agree(row, server, check(process, way, self._work))
                for clients in CLIENTS:
                    before = cpu_seconds(process)
                    measured = way.measure(process, self._work, clients, self._seconds)
                    spent = cpu_seconds(process) - before
                    self._measured(row, clients, measured, spent)
            self._note(whole, "memory_mib", memory(process))
            if network is TINYVIT and server is FP32:
                BIG.measure(process, self._work, 1, WARM_UP)
                self._measured(
                    whole.asked(BIG.name), 1, BIG.measure(process, self._work, 1, self._seconds)
                )

    def _running(self, network: Network, server: Server) -> Running:
        model = network.checkpoint()
        if server.takes_exported:
            model = network.exported(self._work / "exported")
        place = (
            "ours" if server.name == THIS else f"{server.name}-{server.engine}".replace(" ", "-")
        )
        return running(server, model, self._work / place, self._work)

    def _agree(self, row: Row, server: Server, labels: list[str]) -> None:
        """Servers that compute exactly must name the same things as this runtime."""
        if not server.exact:
            return
        expected = self._progress.labels[row.network]
        if labels != expected:
            raise BenchmarkError(f"{row} says {labels}, and not {expected}.")

    def _bare(self, network: Network) -> None:
        checkpoint, precisions = network.checkpoint(), ("fp32", "bf16")
        for precision in precisions:
            row = Row(network.name, BARE, f"OpenVINO {precision}", ALONE)
            self._measured(row, 8, bare(checkpoint, precision, self._seconds, self._cache))
        row = Row(network.name, BARE, "OpenVINO fp32", WITH_PICTURE)
        measured = bare(checkpoint, "fp32", self._seconds, self._cache, PICTURE)
        self._measured(row, 8, measured)

    def _measured(
        self, row: Row, clients: int, measured: Measurement, cpu: float | None = None
    ) -> None:
        if not measured.requests:
            raise BenchmarkError(f"{row}: no answer in {self._seconds:g} s.")
        self._note(row, f"rate_{clients}", measured.rate)
        self._note(row, f"p50_ms_{clients}", measured.p50_ms)
        self._note(row, f"p99_ms_{clients}", measured.p99_ms)
        if cpu:
            self._note(row, f"core_ms_{clients}", 1000 * cpu / measured.requests)
        print(
            f"  {row}, {clients}: {measured.rate:.1f}/s, p50 {measured.p50_ms:.1f} ms, "
            f"p99 {measured.p99_ms:.1f} ms",
            flush=True,
        )

    def _note(self, row: Row, figure: str, value: float) -> None:
        self._progress.results[row][figure].append(value)


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
    parser.add_argument(
        "--quick", action="store_true", help="about 6 minutes: one round; results are not kept"
    )
    parser.add_argument("--fresh", action="store_true", help="do not go on with a broken-off run")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = QUICK
    return options


def chosen(only: str | None) -> list[tuple[Network, Server]]:
    """What is compared, or the part of it with this text in its name."""
    return [
        (network, server)
        for network, server in compared()
        if not only or only in f"{network.name}, {server.name}, {server.engine}"
    ]


def main() -> None:
    options = arguments()
    check_wrk()
    die_tidily()
    started = time.monotonic()
    settings = [options.rounds, options.seconds, options.only]
    progress = Progress(CACHE / "run", settings, fresh=options.fresh)
    bench = Bench(chosen(options.only), options.seconds, progress)
    bench.convert()
    for number in range(1, options.rounds + 1):
        print(f"Round {number} of {options.rounds}", flush=True)
        progress.busy.append(busy_share())
        bench.round(number)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    write(progress, options.rounds, options.seconds, keep=not (options.only or options.quick))
    progress.remove()


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
