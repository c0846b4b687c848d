"""MLServer's ready-made Hugging Face runtime, brought to life again for timm checkpoints."""

from pathlib import Path
from typing import Any

from mlserver.settings import ModelSettings
from transformers import TimmWrapperConfig, pipelines

if not hasattr(pipelines, "Conversation"):
    # mlserver-huggingface 1.7.1 imports this name, gone since transformers 4.42, for a task that
    # is gone as well. SeldonIO/MLServer pull request 2232 makes these lines unnecessary.
    pipelines.Conversation = type("Conversation", (), {})

from mlserver_huggingface import HuggingFaceRuntime


def _set_model_args(config: TimmWrapperConfig, args: dict[str, Any] | None) -> None:
    kept = {name: value for name, value in (args or {}).items() if name != "num_classes"}
    config.__dict__["model_args"] = kept


# timm 1.0.31 saves `num_classes` among `model_args` too, and transformers 4.53 then passes it to
# timm.create_model twice. Unnecessary with a transformers that leaves one of them out.
TimmWrapperConfig.model_args = property(lambda c: c.__dict__["model_args"], _set_model_args)


class TimmRuntime(HuggingFaceRuntime):
    """HuggingFaceRuntime, with `parameters.uri` and relative folders as everywhere in this lab.

    By itself it prefers `extra.pretrained_model` to `parameters.uri` (or MLSERVER_MODEL_URI), and
    reads a relative folder from where the server was started, else as the id of a model on the Hub.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        folder = Path(settings._source).parent if settings._source else Path.cwd()
        uri = settings.parameters.uri if settings.parameters else None
        # MLServer fills in the model's own folder where nobody has set the uri.
        checkpoint = self.hf_settings.pretrained_model if uri in (None, str(folder)) else uri
        if checkpoint and (folder / checkpoint).is_dir():
            checkpoint = str((folder / checkpoint).resolve())
        self.hf_settings.pretrained_model = checkpoint
