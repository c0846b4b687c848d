"""What can be set under `parameters.extra` of model-settings.json, or by `TINYVIT_*` variables."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from mlserver.errors import MLServerError
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "TINYVIT_"

SERVICE_LINK = re.compile(ENV_PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")
"""What Kubernetes puts into each pod's environment for a Service called tinyvit."""


class Configuration(BaseSettings):
    """Settings of the runtime; a value in the file wins over the environment, as in MLServer.

    Each name is also an environment variable: `engine` is `TINYVIT_ENGINE`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=(), frozen=True
    )

    pretrained_model: str = "timm/tiny_vit_5m_224.dist_in22k"
    """Hugging Face Hub id of a timm image classifier, optionally with `@revision`."""

    fallback: str | None = None
    """Checkpoint folder served where the hub cannot be reached and nothing is cached;
    relative to model-settings.json."""

    engine: Literal["auto", "openvino", "torch"] = "auto"
    """`auto`: torch where it sees a GPU, else openvino where it is installed, else torch."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass. `fp32` answers as timm does; `bf16` is faster, inexact."""

    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the engine and of decoding, in each process.
    By default the cores this process may use, shared out over `parallel_workers`."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image accepted, width × height, checked before a pixel is decoded."""

    max_queue: int = Field(default=64, ge=1)
    """Images that may wait or be worked on in one process; one more is refused with 503."""

    timeout: float = Field(default=30.0, gt=0)
    """Seconds a request may take once accepted; then it is given up with 504."""

    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tinyvit-mlserver"
    """Where converted models are kept; where it cannot be written, they are made at each start."""


class ConfigurationError(MLServerError):
    """A setting is unknown or has a value that is not accepted."""


def read_configuration(extra: dict[str, Any] | None) -> Configuration:
    """The settings in `extra`, completed from the environment; raises ConfigurationError."""
    known = Configuration.model_fields
    ours = [name for name in os.environ if name.startswith(ENV_PREFIX)]
    strangers = [
        name
        for name in ours
        if name[len(ENV_PREFIX) :].lower() not in known and not SERVICE_LINK.fullmatch(name)
    ]
    if strangers:
        raise ConfigurationError(f"{_unknown(strangers)} {_accepted(ENV_PREFIX)}")
    try:
        return Configuration(**(extra or {}))
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    problems = error.errors()
    unknown = [str(p["loc"][0]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return f"{_unknown(unknown)} {_accepted()}"
    problem = problems[0]
    return f"The setting '{problem['loc'][0]}' is not valid: {problem['msg']}."


def _unknown(names: list[str]) -> str:
    return f"Unknown setting {', '.join(repr(name) for name in names)}."


def _accepted(prefix: str = "") -> str:
    names = [prefix + (name.upper() if prefix else name) for name in Configuration.model_fields]
    return f"Known: {', '.join(names)}."
