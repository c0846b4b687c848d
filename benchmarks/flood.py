"""Ten times more than the server can do: what it still answers, how fast it refuses the rest, and
what memory that takes.

Capacity is what wrk gets with eight clients. The flood is an open loop: requests leave at a fixed
rate, whether earlier ones are answered or not. Its Python client takes a part of the same machine,
which counts against the server.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from inputs import CACHE, checkpoint, write_bodies
from load import BenchmarkError, check_wrk
from servers import RAW, ServerFailed, check, die_tidily, memory, ours, running

CONNECTIONS = 2000
"""Requests under way at once at most; more are not sent, and are told."""

BROKEN = "no answer"
NOT_SENT = "not sent"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Flood:
    """One request again and again, over connections kept alive where the server keeps them."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._idle: list[Connection] = []
        self._under_way = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Times to an answer, by its status."""

    async def run(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests a second for so long, and waits for the last answer."""
        started = time.perf_counter()
        tasks = []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0, started + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._one()))
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()

    async def _one(self) -> None:
        if self._under_way >= CONNECTIONS:
            self.seconds[NOT_SENT].append(0)
            return
        self._under_way += 1
        started = time.perf_counter()
        try:
            status = await asyncio.wait_for(self._ask(), 60)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError):
            status = BROKEN
        finally:
            self._under_way -= 1
        self.seconds[status].append(time.perf_counter() - started)

    async def _ask(self) -> str:
        connection = self._idle.pop() if self._idle else await self._connect()
        reader, writer = connection
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
            await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            writer.close()
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._idle.append(connection)
        return head.split(" ", 2)[1]

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)


def post(path: str, body: bytes, content_type: str) -> bytes:
    """The whole request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def report(times: Mapping[str, list[float]], seconds: float, capacity: float) -> None:
    """A line for each kind of answer."""
    for status, found in sorted(times.items()):
        p50, p99 = 1000 * np.percentile(found, [50, 99])
        rate = len(found) / seconds
        print(
            f"{status}: {len(found)}, {rate:.1f}/s ({rate / capacity:.2f} × capacity), "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ten times more than the server can do.")
    parser.add_argument("--times", type=float, default=10, help="the capacity, to be sent")
    parser.add_argument("--seconds", type=float, default=10, help="of the flood")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    check_wrk()
    die_tidily()
    CACHE.mkdir(parents=True, exist_ok=True)
    server = ours("flooded", options.precision, ways=(RAW,))
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        write_bodies(work)
        process, _ = stack.enter_context(running(server, checkpoint(), work))
        RAW.measure(process, work, 8, 1)
        capacity = RAW.measure(process, work, 8, 5).rate
        labels = check(process, RAW, work)
        before = memory(process)
        print(f"capacity {capacity:.1f}/s, memory {before:.0f} MiB")

        request = post(RAW.path, (work / RAW.body).read_bytes(), RAW.content_type)
        flood = Flood(process.http_port, request)
        started = time.perf_counter()
        asyncio.run(flood.run(options.times * capacity, options.seconds))
        report(flood.seconds, time.perf_counter() - started, capacity)

        print(f"memory after {memory(process):.0f} MiB")
        if check(process, RAW, work) != labels:
            raise BenchmarkError("After the flood the answer is another.")
        print(f"capacity after {RAW.measure(process, work, 8, 5).rate:.1f}/s")


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, ServerFailed) as error:
        sys.exit(str(error))
