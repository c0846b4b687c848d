"""Asks a model by KServe's own clients: `ask.py URL GRPC_TARGET IMAGE`; prints a line of JSON.

It runs in an environment of its own: kserve and mlserver need different versions of fastapi.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from PIL import Image

MODEL = "tinyvit"


def pixels(image: Path) -> InferInput:
    array = np.asarray(Image.open(image).convert("RGB"))
    tensor = InferInput("payload", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array)
    return tensor


def file(image: Path) -> InferInput:
    tensor = InferInput("payload", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image.read_bytes()], dtype=object))
    return tensor


def request(tensor: InferInput, binary_answer: bool) -> InferRequest:
    parameters = {"binary_data_output": True} if binary_answer else {}
    return InferRequest(MODEL, [tensor], parameters=parameters)


def best(answer: Any) -> list[str]:
    labels = answer.get_output_by_name("labels").as_numpy().ravel()
    return [label.decode() if isinstance(label, bytes) else label for label in labels]


async def main() -> None:
    url, target, image = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    answers: dict[str, Any] = {
        "REST ready": await rest.is_model_ready(url, MODEL),
    }
    async with InferenceGRPCClient(target) as grpc:
        for make in (pixels, file):
            for binary in (False, True):
                name = f"{make.__name__}, {'binary' if binary else 'JSON'} answer"
                infer_request = request(make(image), binary)
                answers[f"REST, {name}"] = best(
                    await rest.infer(url, infer_request, model_name=MODEL)
                )
            infer_request = request(make(image), False)
            answers[f"gRPC, {make.__name__}"] = best(await grpc.infer(infer_request))
        answers["gRPC ready"] = await grpc.is_model_ready(MODEL)
    await rest.close()
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main())
