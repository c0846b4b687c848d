"""Closed-loop load over gRPC: `python grpc_load.py ADDRESS MODEL PICTURE CLIENTS SECONDS`.

Prints what wrk.lua prints. Each client has a channel of its own, as each wrk connection has.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import grpc
import numpy as np
from mlserver.grpc.dataplane_pb2 import InferTensorContents, ModelInferRequest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub


def request_for(model: str, picture: bytes) -> ModelInferRequest:
    """One encoded image, its bytes as they are."""
    tensor = ModelInferRequest.InferInputTensor(
        name="payload",
        datatype="BYTES",
        shape=[1],
        contents=InferTensorContents(bytes_contents=[picture]),
    )
    return ModelInferRequest(model_name=model, inputs=[tensor])


async def client(
    address: str, request: ModelInferRequest, end: float, latencies: list[float]
) -> None:
    """Asks again as soon as it is answered, until `end`; any refusal raises."""
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub = GRPCInferenceServiceStub(channel)
        while (started := time.perf_counter()) < end:
            await stub.ModelInfer(request)
            latencies.append(time.perf_counter() - started)


async def main(address: str, model: str, picture: str, clients: int, seconds: float) -> None:
    request = request_for(model, Path(picture).read_bytes())
    latencies: list[float] = []
    started = time.perf_counter()
    loops = [client(address, request, started + seconds, latencies) for _ in range(clients)]
    await asyncio.gather(*loops)
    p50, p99 = 1000 * np.percentile(latencies, [50, 99])
    result = {
        "requests": len(latencies),
        "seconds": time.perf_counter() - started,
        "p50_ms": p50,
        "p99_ms": p99,
        "errors": 0,
    }
    print("JSON", json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5])))
