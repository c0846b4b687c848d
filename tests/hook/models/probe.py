"""A model that runs the command in its first input: "verb" or "verb:argument"."""

import asyncio
import base64
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


async def until_there(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.01)


class Probe(MLModel):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.extra = (settings.parameters.extra if settings.parameters else None) or {}
        self.number = uuid.uuid4().hex

    def note(self, what: str) -> None:
        """Append a line to the file that the test reads."""
        if "notes" in self.extra:
            with open(self.extra["notes"], "a") as file:
                file.write(f"{what} {self.number} {os.getpid()}\n")

    async def load(self) -> bool:
        self.note("load")
        if "load_waits_for" in self.extra:
            await until_there(self.extra["load_waits_for"])
        if "load_fails" in self.extra:
            raise self.refusal(500, self.extra["load_fails"])
        return True

    async def unload(self) -> bool:
        self.note("unload")
        if "unload_waits_for" in self.extra:
            await until_there(self.extra["unload_waits_for"])
        return True

    def refusal(self, status: int, sentence: str) -> MLServerError:
        return MLServerError(sentence, status)

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        text = payload.inputs[0].data.root[0]
        answer = await self.obey(base64.b64decode(text) if isinstance(text, str) else text)
        output = ResponseOutput(name="answer", shape=[1], datatype="BYTES", data=[answer.encode()])
        return InferenceResponse(model_name=self.name, outputs=[output])

    async def obey(self, text: bytes) -> str:
        verb, _, argument = text.decode().partition(":")
        answer: str = await getattr(self, verb)(argument)
        return answer

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        async for payload in payloads:
            yield await self.predict(payload)

    async def echo(self, argument: str) -> str:
        return argument

    async def pid(self, argument: str) -> str:
        return str(os.getpid())

    async def refuse(self, argument: str) -> str:
        raise self.refusal(int(argument), "The probe refuses.")

    async def crash(self, argument: str) -> str:
        raise RuntimeError("no such kernel")

    async def wait(self, argument: str) -> str:
        """Wait for a file; `.begun` and `.cancelled` files next to it show the progress."""
        Path(f"{argument}.begun").touch()
        try:
            await until_there(argument)
        except asyncio.CancelledError:
            Path(f"{argument}.cancelled").touch()
            raise
        return "waited"
