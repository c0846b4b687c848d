"""TinyViT, or any other timm image classifier, as an MLServer runtime."""

import asyncio
from collections.abc import AsyncIterator

import timm_runtime
from mlserver import MLModel
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, Parameters

timm_runtime.use_code_beside(__file__)  # this folder's own, also beside a copy of it

from timm_runtime import mlserver_patches  # noqa: E402
from timm_runtime.codec import decode_request, encode_response  # noqa: E402
from timm_runtime.pipeline import InferencePipeline, load_pipeline  # noqa: E402
from timm_runtime.settings import keep_requests_apart  # noqa: E402


class TinyViTModel(MLModel):
    """Names what is on an image: OIP input `payload`, outputs `labels` and `scores`."""

    timm_runtime = True  # routes, page and limits go to models that say so
    pipeline: InferencePipeline  # not there until it is loaded

    def __init__(self, settings: ModelSettings) -> None:
        mlserver_patches.apply_all()
        super().__init__(keep_requests_apart(settings))

    async def load(self) -> bool:
        """Finds the weights and prepares the engine, on a thread; begins to take requests."""
        self.pipeline = await asyncio.to_thread(load_pipeline, self.settings)
        self.pipeline.start()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Top-k labels and scores for each image of the request."""
        with self.pipeline.metrics.request(payload.id):
            request = decode_request(payload, self.pipeline)
            results = await self.pipeline.infer(request.images, request.network_outputs)
            return encode_response(request, results, self.pipeline.labels, self.name, self.version)

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        """A response for each request."""
        async for payload in payloads:
            yield await self.predict(payload)

    async def unload(self) -> bool:
        """Answers what was taken in, then lets go of the network."""
        if hasattr(self, "pipeline"):  # MLServer also unloads what it could not load
            await self.pipeline.close()
        return True

    async def metadata(self) -> MetadataModelResponse:
        """What is served, with the weights, engine and precision that are really loaded."""
        metadata = await super().metadata()
        if hasattr(self, "pipeline"):
            metadata.parameters = Parameters(**self.pipeline.facts())
        return metadata
