"""The runtime as MLServer sees it: the base class of its models and the ready-made class."""

import filecmp
import functools
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

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
from mlserver_timm.settings import keep_in_server_process, model_folder
from mlserver_timm.settings_check import warn_ignored_settings

PACKAGE = Path(__file__).resolve().parent

IGNORED = [*filecmp.DEFAULT_IGNORES, ".DS_Store"]
"""Names in the package's folder that are not compared."""

HOOK = "mlserver_timm.server"
"""The package that settings.json names, so that MLServer builds its subclasses."""

logger = logging.getLogger("mlserver.tinyvit")


class TimmModel(MLModel):
    """Base class of every model of this runtime.

    A subclass writes `load` and `predict` with the methods below. Routes, limits and error
    handlers apply to instances of this class: MLServer reloads a model's own module at each load,
    so only a class in this package has a stable identity.
    """

    pipeline: InferencePipeline
    """Set by `load`."""

    def __init__(self, settings: ModelSettings) -> None:
        check_package(model_folder(settings))
        warn_without_hook()
        super().__init__(keep_in_server_process(warn_ignored_settings(settings)))

    async def load_pipeline(self) -> InferencePipeline:
        """Return the running pipeline that the settings describe.

        Raises SettingsError, CheckpointError or EngineUnavailable.
        """
        return await load_pipeline(self.settings)

    def count_refusals(self, request_id: str | None) -> AbstractContextManager[None]:
        """Return a context that counts and logs the request if it is refused or fails inside."""
        return self.pipeline.metrics.request(request_id)

    def decode_request(
        self, payload: InferenceRequest | requests.InferRequest
    ) -> requests.ClassificationRequest:
        """Return the images and options of a request; raises InvalidRequest or InvalidImage.

        This package's servers read requests into an InferRequest, whose data are arrays; MLServer's
        own classes pass an InferenceRequest.
        """
        if isinstance(payload, InferenceRequest):
            payload = from_inference_request(payload)
        return requests.classification_request(payload, self.pipeline.network_outputs)

    def encode_response(
        self,
        payload: InferenceRequest | requests.InferRequest,
        request: requests.ClassificationRequest,
        outputs: Outputs,
    ) -> Any:
        """Return the response from the network's outputs, each float32 `[N,...]`: an
        InferenceResponse for an InferenceRequest, else a ClassificationResponse."""
        response = responses.classification_response(
            request, outputs, self.pipeline.labels, self.name, self.version
        )
        is_mlservers = isinstance(payload, InferenceRequest)
        return to_inference_response(response) if is_mlservers else response

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
            return self.encode_response(payload, request, outputs)


@functools.cache
def warn_without_hook() -> None:
    """Warn, once, if MLServer has built its own classes, not those of this package."""
    if HOOK not in sys.modules:
        logger.warning(
            "Add this line to settings.json, else the model has only MLServer's own routes and "
            'limits: "model_repository_implementation": "%s.ModelRepository"',
            HOOK,
        )


def check_package(folder: Path) -> None:
    """Raise SettingsError if a model's folder holds another version of this package.

    Python imports a name once, so all models of a server run the copy that was imported first.
    """
    copy = (folder / PACKAGE.name).resolve()
    if copy.is_dir() and copy != PACKAGE and _differ(filecmp.dircmp(copy, PACKAGE, IGNORED)):
        raise SettingsError(
            f"{copy} differs from {PACKAGE}, which this server already uses, and a server can use "
            f"only one version: make the folders equal, or serve the models in two servers."
        )


def _differ(comparison: "filecmp.dircmp[str]") -> bool:
    unequal = comparison.left_only + comparison.right_only + comparison.diff_files
    return bool(unequal + comparison.funny_files) or any(
        _differ(each) for each in comparison.subdirs.values()
    )
