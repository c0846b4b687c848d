"""TinyViT, or any other timm image classifier, as an MLServer runtime."""

import asyncio
from collections.abc import AsyncIterator

import timm_runtime
from mlserver import MLModel, ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse

timm_runtime.use_code_beside(__file__)  # this folder's own, also beside a copy of it

from timm_runtime import codec, mlserver_patches, pipeline as pipelines  # noqa: E402


class TinyViTModel(MLModel):
    """Names what is on an image: OIP input `payload`, outputs `labels` and `scores`."""

    timm_runtime = True  # routes, page and limits go to models that say so
    pipeline: pipelines.InferencePipeline  # not there until it is loaded
    # Kept here, since this file's globals are another's once MLServer has loaded a copy of it:
    codec, load_pipeline = codec, staticmethod(pipelines.load_pipeline)

    def __init__(self, model: ModelSettings) -> None:
        mlserver_patches.apply_all()
        super().__init__(pipelines.prepare_settings(model))

    async def load(self) -> bool:
        """Finds the weights and prepares the engine, on a thread; begins to take requests."""
        self.pipeline = await asyncio.to_thread(self.load_pipeline, self.settings)
        self.pipeline.start()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Top-k labels and scores for each image of the request."""
        with self.pipeline.metrics.request(payload.id):
            request = self.codec.decode_request(payload, self.pipeline)
            results = await self.pipeline.infer(request.images, request.network_outputs)
            labels = self.pipeline.labels
            return self.codec.encode_response(request, results, labels, self.name, self.version)

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
            self.codec.complete_metadata(metadata, self.pipeline)
        return metadata
