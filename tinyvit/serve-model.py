"""TinyViT, or any other timm image classifier, as an MLServer runtime."""

import asyncio
import functools
import uuid
from typing import Any

from mlserver import MLModel
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, Parameters
from starlette.responses import HTMLResponse

import mending
import routes
from classifier import SERVED, Classifier
from configuration import read_configuration
from engine import available_cores
from images import open_image
from monitoring import Monitor
from protocol import build_response, check_top_k, ranking, read_request


class TinyViTModel(MLModel):
    """Names what is on a picture: OIP input `payload`, outputs `labels` and `scores`."""

    _classifier: Classifier = None  # type: ignore[assignment]  # until load() has made it

    def __init__(self, settings: ModelSettings) -> None:
        mending.mend(settings)
        super().__init__(settings)
        path = f"/v2/models/{self.name}/classify"
        self.classify = routes.publish(self.classify, path, "POST")
        self.page = routes.publish(self.page, "/", "GET")

    async def load(self) -> bool:
        """Finds the weights and prepares the engine, off the event loop; starts the queue."""
        self._monitor = Monitor(self.settings)
        classifier = await asyncio.to_thread(
            Classifier,
            read_configuration(self.settings.parameters.extra),
            uri=mending.explicit_uri(self.settings),
            base=mending.folder(self.settings),
            max_batch_size=max(1, self.settings.max_batch_size),
            max_batch_time=abs(self.settings.max_batch_time),
            threads=mending.share_of(available_cores()),
            monitor=self._monitor,
        )
        classifier.start()
        self._classifier = SERVED[self.name] = classifier
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Top-k labels and scores for each image of the request."""
        classifier = self._classifier
        with self._monitor.request(payload.id):
            query = read_request(payload, len(classifier.labels), classifier.max_pixels)
            scores = await classifier(query.pictures)
            return build_response(query, scores, classifier.labels, self.name, self.version)

    async def unload(self) -> bool:
        """Answers what was taken in, then lets go of the network."""
        if self._classifier:  # MLServer also unloads what it could not load
            if SERVED.get(self.name) is self._classifier:
                del SERVED[self.name]
            await self._classifier.close()
        return True

    async def metadata(self) -> MetadataModelResponse:
        """What is served, with the weights, engine and precision that are really loaded."""
        metadata = await super().metadata()
        if self._classifier:
            metadata.parameters = Parameters(**self._classifier.facts())
        return metadata

    async def classify(self, picture: bytes = routes.Body, top_k: str | None = routes.TopK) -> Any:
        """`[{"label": ..., "score": ...}, ...]`, best first, for an image file as the body."""
        with self._monitor.request(str(uuid.uuid4())):
            classifier = routes.served(self.name)
            k = check_top_k(top_k, len(classifier.labels))
            opened = functools.partial(open_image, picture, classifier.max_pixels)
            return ranking(await classifier([opened]), k, classifier.labels)

    async def page(self) -> HTMLResponse:
        """A page to drop pictures on."""
        return routes.page(self.name)
