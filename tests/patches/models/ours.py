"""The probe as a model of timm_runtime."""

import timm_runtime
from mlserver.errors import MLServerError
from mlserver.settings import ModelSettings
from probe import Probe

timm_runtime.use_code_beside(__file__)

from timm_runtime import mlserver_patches  # noqa: E402
from timm_runtime.errors import TimmRuntimeError  # noqa: E402


class Refusal(TimmRuntimeError):
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
