"""MLServer's Hugging Face runtime, with fixes that let it start and serve timm checkpoints."""

from pathlib import Path
from typing import Any

from mlserver.settings import ModelSettings
from transformers import TimmWrapperConfig, pipelines

if not hasattr(pipelines, "Conversation"):
    # mlserver-huggingface 1.7.1 imports this name, which transformers 4.42 removed with its task.
    # SeldonIO/MLServer pull request 2232 makes these lines unnecessary.
    pipelines.Conversation = type("Conversation", (), {})

from mlserver_huggingface import HuggingFaceRuntime


def _set_model_args(config: TimmWrapperConfig, args: dict[str, Any] | None) -> None:
    kept = {name: value for name, value in (args or {}).items() if name != "num_classes"}
    config.__dict__["model_args"] = kept


# timm 1.0.31 saves `num_classes` in `model_args`, too, and transformers 4.53 then passes it to
# timm.create_model twice. Remove this when transformers passes it once.
TimmWrapperConfig.model_args = property(lambda c: c.__dict__["model_args"], _set_model_args)


class TimmRuntime(HuggingFaceRuntime):
    """HuggingFaceRuntime that reads `parameters.uri` and relative folders as this lab does.

    HuggingFaceRuntime prefers `extra.pretrained_model` to `parameters.uri` (or MLSERVER_MODEL_URI).
    It takes a relative folder from the working directory, or for the id of a model on the Hub.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        folder = Path(settings._source).parent if settings._source else Path.cwd()
        uri = settings.parameters.uri if settings.parameters else None
        # MLServer fills in the model's own folder if the uri is not set.
        checkpoint = self.hf_settings.pretrained_model if uri in (None, str(folder)) else uri
        if checkpoint and (folder / checkpoint).is_dir():
            checkpoint = str((folder / checkpoint).resolve())
        self.hf_settings.pretrained_model = checkpoint
