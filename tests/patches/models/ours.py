"""The probe as a model of timm_runtime."""

import timm_runtime.errors
from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from probe import Probe
from timm_runtime import mlserver_patches


class Refusal(timm_runtime.errors.TimmRuntimeError):
    """Of any status."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status  # type: ignore[misc]
        super().__init__(sentence)


class Ours(Probe):
    timm_runtime = True

    def __init__(self, settings: ModelSettings) -> None:
        mlserver_patches.apply_all()
        super().__init__(settings)

    def refusal(self, status: int, sentence: str) -> MLServerError:
        return Refusal(status, sentence)
