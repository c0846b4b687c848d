"""TinyViT, or any other timm image classifier, as an MLServer runtime."""

import asyncio
from pathlib import Path

import mending
from classifier import Classifier
from configuration import read_configuration
from engine import available_cores
from mlserver import MLModel
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, Parameters
from protocol import build_response, read_request


class TinyViTModel(MLModel):
    """Names what is on a picture: OIP input `payload`, outputs `labels` and `scores`."""

    def __init__(self, settings: ModelSettings) -> None:
        mending.mend(settings)
        super().__init__(settings)

    async def load(self) -> bool:
        """Finds the weights and prepares the engine, off the event loop; starts the queue."""
        config = read_configuration(self.settings.parameters.extra)
        batch_size = max(1, self.settings.max_batch_size)
        self._classifier = await asyncio.to_thread(
            Classifier,
            config,
            uri=mending.explicit_uri(self.settings),
            base=Path(mending.folder(self.settings)),
            batches=range(1, batch_size + 1),
            threads=config.num_threads or mending.share_of(available_cores()),
        )
        self._max_pixels = config.max_pixels
        self._labels = self._classifier.description.labels
        self._classifier.start(batch_size, abs(self.settings.max_batch_time), lambda n, v: None)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Top-k labels and scores for each image of the request."""
        query = read_request(payload, len(self._labels), self._max_pixels)
        scores = await self._classifier(query.pictures)
        return build_response(query, scores, self._labels, self.name, self.version)

    async def unload(self) -> bool:
        """Answers what was taken in, then lets go of the network."""
        await self._classifier.close()
        return True

    async def metadata(self) -> MetadataModelResponse:
        """What is served, with the weights, engine and precision that are really loaded."""
        metadata = await super().metadata()
        metadata.parameters = Parameters(**self._classifier.facts())
        return metadata
