"""TinyViT, or any other timm image classifier, as an MLServer runtime."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse

from mlserver_timm import TimmModel


class TinyViTModel(TimmModel, MLModel):
    """Classify images: input `payload`, outputs `labels` and `scores`."""

    async def load(self) -> bool:
        """Find the weights, compile the network and start the threads that serve it."""
        self.pipeline = await self.load_pipeline()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the top-k labels and scores of each image in the request."""
        with self.count_refusals(payload.id):
            request = self.decode_request(payload)
            outputs = await self.pipeline.infer(request.images, request.network_outputs)
            return self.encode_response(payload, request, outputs)
