"""The runtime as MLServer sees it: the base class of its models and the ready-made class."""

import asyncio
import filecmp
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

from mlserver import MLModel, ModelSettings
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataTensor,
    Parameters,
)

from mlserver_timm.errors import SettingsError
from mlserver_timm.inference.engines.base import Outputs
from mlserver_timm.inference.pipeline import InferencePipeline, load_pipeline
from mlserver_timm.mlserver_types import from_inference_request, to_inference_response
from mlserver_timm.protocol import request as requests, response as responses
from mlserver_timm.settings import disable_mlserver_batching, model_folder
from mlserver_timm.settings_check import warn_ignored_settings

PACKAGE = Path(__file__).resolve().parent


class TimmModel(MLModel):
    """Base class of every model of this runtime.

    A subclass writes `load` and `predict` with the methods below. Routes, limits and error
    handlers apply to instances of this class: MLServer reloads a model's own module at each load,
    so only a class in this package has a stable identity.
    """

    pipeline: InferencePipeline
    """Set by `load`."""

    def __init__(self, settings: ModelSettings) -> None:
        from mlserver_timm.server import patches

        check_package(model_folder(settings))
        patches.apply_all()
        super().__init__(disable_mlserver_batching(warn_ignored_settings(settings)))

    async def load_pipeline(self) -> InferencePipeline:
        """Return the running pipeline that the settings describe; its loading runs on a thread.

        Raises SettingsError, CheckpointError or EngineUnavailable.
        """
        pipeline = await asyncio.to_thread(load_pipeline, self.settings)
        pipeline.start()
        return pipeline

    def count_refusals(self, request_id: str | None) -> AbstractContextManager[None]:
        """Return a context that counts and logs the request if it is refused or fails inside."""
        return self.pipeline.metrics.request(request_id)

    def decode_request(self, payload: InferenceRequest) -> requests.ClassificationRequest:
        """Return the images and options of a request; raises InvalidRequest or InvalidImage."""
        return requests.classification_request(from_inference_request(payload), self.pipeline)

    def encode_response(
        self, request: requests.ClassificationRequest, outputs: Outputs
    ) -> InferenceResponse:
        """Return the protocol's response from the network's outputs, each float32 `[N,...]`."""
        labels = self.pipeline.labels
        return to_inference_response(
            responses.classification_response(request, outputs, labels, self.name, self.version)
        )

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        """Yield one response for each request."""
        async for payload in payloads:
            yield await self.predict(payload)

    async def unload(self) -> bool:
        """Answer the requests that were accepted, then release the network."""
        if hasattr(self, "pipeline"):  # MLServer also unloads models whose load failed
            await self.pipeline.close()
        return True

    async def metadata(self) -> MetadataModelResponse:
        """Return inputs, outputs, and the weights, engine and precision that are really loaded."""
        metadata = await super().metadata()
        if hasattr(self, "pipeline"):
            metadata.parameters = Parameters(**self.pipeline.facts())
            metadata.outputs = [
                MetadataTensor(name=name, datatype=datatype, shape=shape)
                for name, datatype, shape in responses.declared_outputs(
                    self.pipeline.network_outputs
                )
            ]
        return metadata


class TimmClassifier(TimmModel):
    """The runtime for settings without code: `"implementation": "mlserver_timm.TimmClassifier"`."""

    async def load(self) -> bool:
        """Find the weights and start the pipeline."""
        self.pipeline = await self.load_pipeline()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the top-k labels and scores of each image."""
        with self.count_refusals(payload.id):
            request = self.decode_request(payload)
            outputs = await self.pipeline.infer(request.images, request.network_outputs)
            return self.encode_response(request, outputs)


def check_package(folder: Path) -> None:
    """Raise SettingsError if a model's folder holds another version of this package.

    Python imports a name once, so all models of a server run the copy that was imported first.
    """
    copy = (folder / PACKAGE.name).resolve()
    if copy.is_dir() and copy != PACKAGE and _differ(filecmp.dircmp(copy, PACKAGE)):
        raise SettingsError(
            f"{copy} differs from {PACKAGE}, which this server already uses, and a server can use "
            f"only one version: make the folders equal, or serve the models in two servers."
        )


def _differ(comparison: "filecmp.dircmp[str]") -> bool:
    unequal = comparison.left_only + comparison.right_only + comparison.diff_files
    return bool(unequal + comparison.funny_files) or any(
        _differ(each) for each in comparison.subdirs.values()
    )
