"""Ten times more than the server can do: what it still answers, how fast it refuses the rest, and
what memory that takes.

Capacity is what wrk gets with eight clients, the mean of before and after; the flood is repeated,
and the median counts. It is an open loop: requests leave at a fixed rate, whether earlier ones are
answered or not. Its client takes a part of the same machine, which counts against the server, and
is told.
"""

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import uvloop
from compared import RAW, ours
from inputs import CACHE, full_size, write_bodies
from machine import cores
from measurement import BenchmarkError, check_wrk
from servers import ServerFailed, check, die_tidily, memory, running

CONNECTIONS = 2000
"""Requests under way at once at most; more are not sent, and are told."""

BROKEN = "no answer"
NOT_SENT = "not sent"

PATIENCE = 60
"""Seconds to wait for answers after the last request."""

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One request after the other; as little work as can be, since the server has the rest."""

    def __init__(self, flood: "Flood") -> None:
        self._flood = flood
        self._answer = bytearray()
        self._sent = 0.0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> None:
        self._answer.clear()
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, ended, body = self._answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if ended and length and len(body) == int(length[1]):
            status = head[9:12].decode()
            self._flood.answered(self, status, time.perf_counter() - self._sent)

    def connection_lost(self, error: Exception | None) -> None:
        self._flood.lost(self)


class Flood:
    """One request again and again, over connections kept alive where the server keeps them."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Times to an answer, by its status."""

    async def run(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests a second for so long, and waits for the last answer."""
        started = time.perf_counter()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0, started + number / rate - time.perf_counter()))
            if len(self._busy) >= CONNECTIONS:
                self.seconds[NOT_SENT].append(0)
            else:
                await self._ask()
        last = time.perf_counter()
        while self._busy and time.perf_counter() < last + PATIENCE:
            await asyncio.sleep(0.05)
        for _ in self._busy:
            self.seconds[BROKEN].append(PATIENCE)

    async def _ask(self) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self._port
            )
        self._busy.add(connection)
        connection.ask(self._request)

    def answered(self, connection: Connection, status: str, seconds: float) -> None:
        self.seconds[status].append(seconds)
        self._busy.discard(connection)
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self.seconds[BROKEN].append(0)
        else:
            self._idle.remove(connection)


def post(path: str, body: bytes, content_type: str) -> bytes:
    """The whole request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Rounds:
    """Floods of one server, and what it can do before and after each."""

    def __init__(self, process: Any, work: Path, times: float, seconds: float) -> None:
        self._process = process
        self._work = work
        self._times = times
        self._seconds = seconds
        self._request = post(RAW.path, (work / RAW.body).read_bytes(), RAW.content_type)
        self._capacities = [self._capacity()]
        self._elapsed: list[float] = []
        self._answers: list[Mapping[str, list[float]]] = []
        self._share: list[float] = []

    def _capacity(self) -> float:
        return RAW.measure(self._process, self._work, 8, 5).rate

    def flood(self) -> None:
        """One more."""
        flood = Flood(self._process.http_port, self._request)
        started, own = time.perf_counter(), time.process_time()
        asyncio.run(flood.run(self._times * self._capacities[0], self._seconds))
        elapsed = time.perf_counter() - started
        self._share.append((time.process_time() - own) / elapsed / cores())
        self._elapsed.append(elapsed)
        self._answers.append(flood.seconds)
        self._capacities.append(self._capacity())

    def report(self) -> None:
        """A line for each kind of answer, and what the good ones are of the capacity."""
        print("capacity " + ", ".join(f"{rate:.1f}" for rate in self._capacities) + " /s")
        for status in sorted({status for answers in self._answers for status in answers}):
            found = [second for answers in self._answers for second in answers.get(status, [])]
            p50, p99 = 1000 * np.percentile(found, [50, 99])
            rate = len(found) / sum(self._elapsed)
            print(f"{status}: {len(found)}, {rate:.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        shares = self._goodput()
        print(
            f"good answers: {median(shares):.2f} × capacity "
            f"({', '.join(f'{share:.2f}' for share in shares)}), while this client took "
            f"{median(self._share):.1%} of the processor"
        )

    def _goodput(self) -> list[float]:
        around = pairwise(self._capacities)
        return [
            len(answers.get("200", [])) / elapsed / mean(capacities)
            for answers, elapsed, capacities in zip(
                self._answers, self._elapsed, around, strict=True
            )
        ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ten times more than the server can do.")
    parser.add_argument("--times", type=float, default=10, help="the capacity, to be sent")
    parser.add_argument("--seconds", type=float, default=10, help="of each flood")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    check_wrk()
    die_tidily()
    uvloop.install()
    CACHE.mkdir(parents=True, exist_ok=True)
    server = ours(options.precision, (RAW,))
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        write_bodies(work)
        process, _ = stack.enter_context(running(server, full_size(), work, work))
        RAW.measure(process, work, 8, 1)
        labels = check(process, RAW, work)
        rounds = Rounds(process, work, options.times, options.seconds)
        before = memory(process)
        for _ in range(options.rounds):
            rounds.flood()
            if check(process, RAW, work) != labels:
                raise BenchmarkError("After the flood the answer is another.")
        print(f"memory before {before:.0f} MiB, after {memory(process):.0f} MiB")
        rounds.report()


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
