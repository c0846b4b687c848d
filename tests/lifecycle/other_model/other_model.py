"""A model of another runtime: it adds rows of numbers, or runs the command in a text."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import mlserver
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from prometheus_client import REGISTRY, Counter


def counter(name: str) -> Counter:
    """Return the counter of this process: reloads and other models share it."""
    existing = REGISTRY._names_to_collectors.get(name)
    return existing if isinstance(existing, Counter) else Counter(name, "Requests", ["model"])


class OtherModel(MLModel):
    async def load(self) -> bool:
        mlserver.register("other_registered", "Registered as MLServer's documentation says")
        self.requests = counter("other_requests")
        return True

    @custom_handler(rest_path="/other/hello", rest_method="GET")
    async def hello(self) -> dict[str, str]:
        return {"hello": self.name}

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        self.requests.labels(model=self.name).inc()
        mlserver.log(other_registered=1.0)
        if payload.inputs[0].datatype == "FP32":
            return self.add_rows(payload)
        verb, _, argument = command(payload).partition(":")
        return self.response(await getattr(self, verb)(argument))

    def add_rows(self, payload: InferenceRequest) -> InferenceResponse:
        """Return each row's sum and the number of rows that came together."""
        count, width = payload.inputs[0].shape
        flat = payload.inputs[0].data.root
        rows = [[sum(flat[i : i + width]), count] for i in range(0, len(flat), width)]
        output = ResponseOutput(
            name="sums", shape=[count, 2], datatype="FP32", data=[x for row in rows for x in row]
        )
        return InferenceResponse(model_name=self.name, outputs=[output])

    def response(self, text: str) -> InferenceResponse:
        output = ResponseOutput(name="answer", shape=[1], datatype="BYTES", data=[text.encode()])
        headers = Parameters(headers={"X-Other": "hello"})
        return InferenceResponse(model_name=self.name, parameters=headers, outputs=[output])

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        """Send two responses for each request, the second once a file exists."""
        async for payload in payloads:
            verb, _, gate = command(payload).partition(":")
            yield self.response(f"{verb} 1")
            while not Path(gate).exists():
                await asyncio.sleep(0.01)
            yield self.response(f"{verb} 2")

    async def pieces(self, argument: str) -> str:
        return "in one"

    async def echo(self, argument: str) -> str:
        return argument

    async def size(self, argument: str) -> str:
        return str(len(argument))

    async def refuse(self, argument: str) -> str:
        raise MLServerError("The other model refuses.", int(argument))

    async def crash(self, argument: str) -> str:
        raise RuntimeError("no such kernel")


def command(payload: InferenceRequest) -> str:
    """Return the text of the first input."""
    text = payload.inputs[0].data.root[0]
    return text.decode() if isinstance(text, bytes) else text
