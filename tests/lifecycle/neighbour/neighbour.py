"""Somebody else's model: it adds rows of numbers, and does what a text tells it to."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import engine
import images
import mlserver
import protocol
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.handlers import custom_handler
from mlserver.logging import logger
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from prometheus_client import REGISTRY, Counter


def counter(name: str) -> Counter:
    known = REGISTRY._names_to_collectors.get(name)
    return known if isinstance(known, Counter) else Counter(name, "Requests", ["model"])


class Neighbour(MLModel):
    async def load(self) -> bool:
        mlserver.register("neighbour_registered", "As MLServer's documentation has it")
        self.requests = counter("neighbour_requests")
        self.notes = Path(self.settings.parameters.extra["notes"])
        return True

    def note(self, line: str) -> None:
        with self.notes.open("a") as file:
            file.write(f"{line}\n")

    @custom_handler(rest_path="/neighbour/hello", rest_method="GET")
    async def hello(self) -> dict[str, str]:
        return {"hello": self.name}

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        self.requests.labels(model=self.name).inc()
        mlserver.log(neighbour_registered=1.0)
        if payload.inputs[0].datatype == "FP32":
            return self.added(payload)
        told = protocol.told(payload)
        logger.info("told %s", told[:40])
        verb, _, argument = told.partition(":")
        return self.answered(await getattr(self, verb)(argument))

    def added(self, payload: InferenceRequest) -> InferenceResponse:
        self.note(f"shape {payload.inputs[0].shape}")
        flat = payload.inputs[0].data.root
        rows = [flat[i : i + images.WIDTH] for i in range(0, len(flat), images.WIDTH)]
        sums = engine.add(rows)
        output = ResponseOutput(name="sums", shape=[len(sums), 1], datatype="FP32", data=sums)
        return InferenceResponse(model_name=self.name, outputs=[output])

    def answered(self, text: str) -> InferenceResponse:
        output = ResponseOutput(name="answer", shape=[1], datatype="BYTES", data=[text.encode()])
        return InferenceResponse(
            model_name=self.name,
            parameters=Parameters(headers={"X-Neighbour": "hello"}),
            outputs=[output],
        )

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        """Two answers for each request; between them it waits for a file that the request names."""
        async for payload in payloads:
            verb, _, gate = protocol.told(payload).partition(":")
            yield self.answered(f"{verb} 1")
            await self.there(gate)
            yield self.answered(f"{verb} 2")

    async def there(self, path: str) -> None:
        while not Path(path).exists():
            await asyncio.sleep(0.01)

    async def pieces(self, argument: str) -> str:
        return "in one"

    async def echo(self, argument: str) -> str:
        return argument

    async def size(self, argument: str) -> str:
        return str(len(argument))

    async def refuse(self, argument: str) -> str:
        raise MLServerError("The neighbour refuses.", int(argument))

    async def crash(self, argument: str) -> str:
        raise RuntimeError("no such kernel")

    async def wait(self, argument: str) -> str:
        self.note("begun")
        try:
            await self.there(argument)
        except asyncio.CancelledError:
            self.note("cancelled")
            raise
        self.note("finished")
        return "waited"
