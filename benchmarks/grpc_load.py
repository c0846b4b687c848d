"""Closed-loop load over gRPC: `python -m benchmarks.grpc_load ADDRESS MODEL IMAGE CLIENTS SECONDS`.

Each client has a channel of its own, as each wrk connection has.
"""

import asyncio
import sys
import time
from pathlib import Path

import grpc
from mlserver.grpc.dataplane_pb2 import ModelInferRequest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.load import report
from tests.support.clients import message


async def repeat(address: str, request: ModelInferRequest, end: float) -> list[float]:
    """Repeat the request until `end` and return the latencies; a failed request raises."""
    latencies = []
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = GRPCInferenceServiceStub(channel)
        while (started := time.perf_counter()) < end:
            await stub.ModelInfer(request)
            latencies.append(time.perf_counter() - started)
    return latencies


async def main(address: str, model: str, image: str, clients: int, seconds: float) -> None:
    """Run all clients at once."""
    request = message(bytes_contents=[Path(image).read_bytes()], model=model)
    started = time.perf_counter()
    loops = [repeat(address, request, started + seconds) for _ in range(clients)]
    latencies = sum(await asyncio.gather(*loops), [])
    report(latencies, time.perf_counter() - started)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5])))
