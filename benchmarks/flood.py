"""Send ten times the server's capacity: good answers, refusals and memory."""

import asyncio
import time
from collections import defaultdict

import numpy as np

from benchmarks.compared import RAW, ours
from benchmarks.networks import full_size
from benchmarks.servers import check, memory, running, workspace

TIMES, SECONDS = 10, 10


async def flood(port: int, request: bytes, rate: float) -> dict[str, list[float]]:
    """Send `rate` requests per second in an open loop; return the latencies by status."""
    latencies: dict[str, list[float]] = defaultdict(list)

    async def send(started: float) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            status = (await reader.read())[9:12].decode()
            writer.close()
        except OSError:
            status = ""
        latencies[status or "no answer"].append(time.perf_counter() - started)

    started, tasks = time.perf_counter(), []
    for number in range(round(rate * SECONDS)):
        await asyncio.sleep(started + number / rate - time.perf_counter())
        tasks.append(asyncio.create_task(send(time.perf_counter())))
    await asyncio.gather(*tasks)
    return latencies


if __name__ == "__main__":
    with workspace() as work, running(ours("fp32"), full_size(), work, work) as (server, _):
        body = (work / RAW.body).read_bytes()
        head = f"POST {RAW.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: "
        capacity, before = RAW.measure(server, work, 8, SECONDS).rate, memory(server)
        request = f"{head}{len(body)}\r\n\r\n".encode() + body
        latencies = asyncio.run(flood(server.http_port, request, TIMES * capacity))
        for status, values in latencies.items():
            p50, p99 = 1000 * np.percentile(values, [50, 99])
            print(f"{status}: {len(values)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"{len(latencies['200']) / SECONDS / capacity:.2f} × capacity, {capacity:.1f}/s")
        check(server, RAW, work)
        print(f"memory before {before:.0f} MiB, after {memory(server):.0f} MiB")
