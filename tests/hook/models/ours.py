"""The probe as a model of this runtime."""

from mlserver.errors import MLServerError
from probe import Probe

from mlserver_timm.errors import TimmRuntimeError
from mlserver_timm.runtime import TimmModel


class Refusal(TimmRuntimeError):
    """An error of any status."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status  # type: ignore[misc]
        super().__init__(sentence)


class Ours(Probe, TimmModel):
    def refusal(self, status: int, sentence: str) -> MLServerError:
        return Refusal(status, sentence)
