"""All requests of a gRPC stream, also with workers."""

from collections.abc import AsyncIterator

from mlserver.parallel.model import ParallelModel
from mlserver.types import InferenceRequest, InferenceResponse

from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import is_timm_model

FAULT = "With workers, MLServer answers the first request of a gRPC stream and drops the others."
UPSTREAM = "https://github.com/SeldonIO/MLServer/pull/2246"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Concerns this runtime's models alone."""

    def predict_stream(
        self: ParallelModel, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        return _each(self, payloads) if is_timm_model(self) else original(self, payloads)

    original = replace(ParallelModel, "predict_stream", predict_stream)


async def _each(
    self: ParallelModel, payloads: AsyncIterator[InferenceRequest]
) -> AsyncIterator[InferenceResponse]:
    async for payload in payloads:
        yield await self.predict(payload)
