"""How many requests a second more cores and replicas would answer: a simulation of the pipeline.

    python benchmarks/simulate.py [--check]

Each server process is modelled as it is built: an event loop, whose work holds the interpreter's
lock; decoding threads, which hold it for a part of their work; streams of the engine, which do not
need it; and the batcher's rules that a lone image has all threads, that a crowd shares the streams,
and that in a crowd the thread that decodes goes on to compute.
Cores are shared evenly by all that could run. Service times come from profile.json, which
profile_request.py writes on the bundled sample. With --check the model is compared with what a real
server answers on one core and on two, and its error told.

The model leaves out memory bandwidth and caches that more cores share, clock frequencies, a
network, and nginx before replicas: for more cores than were there its figures are upper bounds.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compared import RAW, SAMPLE_FP32
from inputs import CACHE, SAMPLE, write_bodies
from measurement import BenchmarkError, check_wrk
from servers import ServerFailed, check, die_tidily, running

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tinyvit"))

from timm_runtime.engines.factory import MAX_STREAMS
from timm_runtime.engines.openvino_engine import REQUESTS_PER_STREAM

HERE = Path(__file__).resolve().parent

LOCKED = ("crop and copy", "JPEG: header")
"""Steps of decoding that hold the interpreter's lock; the others are Pillow's C code without it."""
DECODING = ("JPEG: decode", "resize", *LOCKED)
ENGINE = "engine"
WAITING = ("hand-over between threads, and the queue", "client, kernel and event loop")
"""Steps in which no thread of the server works, but for what the event loop does in between."""

CLIENT_MS = 0.05
"""Of wrk, on a core, for each request."""

LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (16, 1), (16, 4), (64, 1), (64, 8), (64, 16))
"""Cores and replicas."""


@dataclass(frozen=True)
class Times:
    """Milliseconds that one request takes on one core."""

    loop: float
    """On the event loop, holding the lock: half before decoding, half after the engine."""
    decode_locked: float
    """On a decoding thread, holding the lock."""
    decode: float
    """On a decoding thread, without it."""
    engine: float
    """On one thread."""
    parallel: float
    """Share of the engine's work that several threads divide among themselves."""
    client: float = CLIENT_MS
    """Of the program that makes the load, where that is on the same cores."""

    @property
    def locked_share(self) -> float:
        """How much of a request's work holds the lock: what one process cannot do twice at once."""
        held = self.loop + self.decode_locked
        return held / (held + self.decode + self.engine)

    def engine_on(self, threads: int) -> float:
        """Milliseconds until several threads have computed an image."""
        return self.engine * (1 - self.parallel + self.parallel / threads)


def times_of(profile: dict[str, Any]) -> Times:
    """From profile.json: the steps of a raw JPEG, and what the engine takes in a stream.

    What a request takes on cores beyond its steps, system calls and waking threads above all,
    counts as the event loop's.
    """
    name, steps = next(iter(profile["steps"].items()))
    cores = profile["machine"]["cores"]
    engine = 1000 * min(cores, MAX_STREAMS) / profile["engine"]["rate"]
    locked = sum(steps.get(step, 0) for step in LOCKED)
    decode = sum(steps.get(step, 0) for step in DECODING) - locked
    others = (*DECODING, *WAITING, ENGINE)
    on_loop = sum(value for step, value in steps.items() if step not in others)
    spent = profile["plain"][f"{name}, 8"]["core_ms"]
    parallel = (1 - steps[ENGINE] / engine) / (1 - 1 / cores) if cores > 1 else 0.9
    return Times(
        loop=max(on_loop, spent - engine - decode - locked),
        decode_locked=locked,
        decode=decode,
        engine=engine,
        parallel=min(1.0, max(0.0, parallel)),
    )


Activity = Generator["Work | Take", None, None]
"""Yields what it needs next, and goes on when it has had it."""


@dataclass(eq=False)
class Work:
    """Milliseconds on each of `width` cores."""

    left: float
    width: int = 1


@dataclass(eq=False)
class Take:
    """Some of a resource, which waits in line until there is as much."""

    resource: "Resource"
    amount: int = 1


class Resource:
    """So many of something, given out first come, first served."""

    def __init__(self, amount: int) -> None:
        self.size = self.free = amount
        self.waiting: deque[tuple[Take, Activity]] = deque()

    @property
    def idle(self) -> bool:
        return self.free == self.size and not self.waiting


class Machine:
    """Cores, shared evenly by all that could run, and the time."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._working: dict[Work, Activity] = {}
        self.now = 0.0

    def go_on(self, activity: Activity) -> None:
        """Runs an activity until it works or waits."""
        for need in activity:
            if isinstance(need, Work):
                self._working[need] = activity
                return
            if need.resource.waiting or need.resource.free < need.amount:
                need.resource.waiting.append((need, activity))
                return
            need.resource.free -= need.amount

    def give_back(self, resource: Resource, amount: int = 1) -> None:
        """Lets the next in line go on."""
        resource.free += amount
        while resource.waiting and resource.waiting[0][0].amount <= resource.free:
            need, activity = resource.waiting.popleft()
            resource.free -= need.amount
            self.go_on(activity)

    def step(self) -> None:
        """Lets time pass until the first of all work is done."""
        wanted = sum(work.width for work in self._working)
        speed = min(1.0, self._cores / wanted)
        first = min(self._working, key=lambda work: work.left)
        passed = first.left
        for work in self._working:
            work.left -= passed
        self.now += passed / speed
        self.go_on(self._working.pop(first))


class Process:
    """One server process with so many threads."""

    def __init__(self, machine: Machine, times: Times, threads: int) -> None:
        self._machine, self._times, self._threads = machine, times, threads
        self._lock = Resource(1)
        self._decoders = Resource(threads)
        self._streams = Resource(min(threads, MAX_STREAMS))
        self._lanes = Resource(REQUESTS_PER_STREAM * self._streams.size)
        self._admitted = 0

    def request(self) -> Activity:
        """One request, from its arrival to its answer."""
        times = self._times
        yield from self._locked(times.loop / 2)
        self._admitted += 1
        crowded = self._admitted > self._streams.size and self._threads <= self._lanes.size
        thread = self._lanes if crowded else self._decoders
        yield Take(thread)
        yield from self._locked(times.decode_locked)
        yield Work(times.decode)
        if not crowded:
            self._machine.give_back(thread)
        yield from self._engine()
        if crowded:
            self._machine.give_back(thread)
        self._admitted -= 1
        yield from self._locked(times.loop / 2)

    def _locked(self, milliseconds: float) -> Activity:
        yield Take(self._lock)
        yield Work(milliseconds)
        self._machine.give_back(self._lock)

    def _engine(self) -> Activity:
        """All streams for a lone image, else one with its share of the threads."""
        streams = self._streams
        taken = streams.size if streams.idle else 1
        yield Take(streams, taken)
        threads = self._threads * taken // streams.size
        yield Work(self._times.engine_on(threads), width=threads)
        self._machine.give_back(streams, taken)


@dataclass(frozen=True)
class Prediction:
    """What the simulation says of one layout."""

    rate: float
    """Requests a second."""
    p50_ms: float


def simulate(
    times: Times, cores: int, replicas: int = 1, clients: int = 8, requests: int = 3000
) -> Prediction:
    """Clients that each ask again as soon as they are answered, spread evenly over the replicas."""
    machine = Machine(cores)
    processes = [Process(machine, times, max(1, cores // replicas)) for _ in range(replicas)]
    taken: list[float] = []

    def client(process: Process) -> Activity:
        while True:
            started = machine.now
            if times.client:
                yield Work(times.client)
            yield from process.request()
            taken.append(machine.now - started)

    for number in range(clients):
        machine.go_on(client(processes[number % replicas]))
    warm_up = requests // 10
    while len(taken) < warm_up:
        machine.step()
    began, taken = machine.now, []
    while len(taken) < requests:
        machine.step()
    return Prediction(1000 * requests / (machine.now - began), sorted(taken)[requests // 2])


def table(times: Times) -> str:
    """The layouts' predictions."""
    one = simulate(times, 1).rate
    lines = ["| cores | replicas | clients | requests/s | × one core | p50 ms, 1 client |"]
    lines.append("|--:|--:|--:|--:|--:|--:|")
    for cores, replicas in LAYOUTS:
        clients = max(8, 4 * cores)
        crowd = simulate(times, cores, replicas, clients)
        lone = simulate(times, cores, replicas, clients=1, requests=100)
        lines.append(
            f"| {cores} | {replicas} | {clients} | {crowd.rate:.0f} | {crowd.rate / one:.1f} "
            f"| {lone.p50_ms:.1f} |"
        )
    return "\n".join(lines)


def measured(cores: int, clients: int, seconds: float, work: Path) -> float:
    """Requests a second of a real server on the first cores; the load comes from another where
    there is one left."""
    everywhere = sorted(os.sched_getaffinity(0))
    rest = everywhere[cores:] or everywhere
    started = running(SAMPLE_FP32, SAMPLE.checkpoint(), work / "ours", work)
    with _on(everywhere[:cores]), started as (process, _), _on(rest):
        RAW.measure(process, work, 8, 1)
        check(process, RAW, work)
        return RAW.measure(process, work, clients, seconds).rate


@contextmanager
def _on(cores: list[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(times: Times, seconds: float) -> str:
    """Model and server side by side, on as many cores as there are, up to two."""
    lines = ["| cores | clients | measured/s | simulated/s | error |", "|--:|--:|--:|--:|--:|"]
    here = len(os.sched_getaffinity(0))
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        work = Path(folder)
        write_bodies(work)
        with running(SAMPLE_FP32, SAMPLE.checkpoint(), work / "ours", work):
            pass  # converts the network
        for cores in range(1, min(2, here) + 1):
            on_these = times if cores == here else replace(times, client=0)
            for clients in (1, 8):
                real = measured(cores, clients, seconds, work)
                model = simulate(on_these, cores, clients=clients).rate
                error = f"{model / real - 1:+.0%}"
                lines.append(f"| {cores} | {clients} | {real:.1f} | {model:.1f} | {error} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", type=Path, default=HERE / "profile.json")
    parser.add_argument("--check", action="store_true", help="compare with a real server")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    options = parser.parse_args()
    if not options.profile.exists():
        sys.exit(f"There is no {options.profile}; python benchmarks/profile_request.py writes it.")
    times = times_of(json.loads(options.profile.read_text()))
    print(f"{times}\nShare that holds the lock: {times.locked_share:.0%}\n\n{table(times)}")
    if options.check:
        check_wrk()
        die_tidily()
        print(f"\n{compare(times, options.seconds)}")


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
