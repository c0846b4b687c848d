"""The probe as a model of this runtime."""

from typing import Any

from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest
from probe import Probe

from mlserver_timm.errors import TimmRuntimeError
from mlserver_timm.protocol.response import ClassificationResponse, OutputTensor
from mlserver_timm.runtime import TimmModel


class Refusal(TimmRuntimeError):
    """An error of any status."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status  # type: ignore[misc]
        super().__init__(sentence)


class Ours(Probe, TimmModel):
    async def predict(self, payload: Any) -> Any:
        if isinstance(payload, InferenceRequest):  # without the hook
            return await super().predict(payload)
        answer = await self.obey(bytes(payload.inputs[0].data[0]))
        output = OutputTensor("answer", "BYTES", (1,), [answer])
        return ClassificationResponse(self.name, None, payload.id, (output,))

    def refusal(self, status: int, sentence: str) -> MLServerError:
        return Refusal(status, sentence)
