"""What can be set: `parameters.extra` of model-settings.json, `TINYVIT_*` variables, and the limits
and paths that MLServer's own settings hold."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from mlserver.settings import ModelSettings
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlserver_timm.errors import SettingsError

ENV_PREFIX = "TINYVIT_"

SERVICE_LINK = re.compile(ENV_PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")
"""What Kubernetes puts into each pod's environment for a Service called tinyvit."""

DECODE_MEMORY, DECODE_MEMORY_A_THREAD = 256 * 2**20, 64 * 2**20
"""Bytes: what one large image takes, and what an image of 12 megapixels takes."""

PATH_STARTS = ("/", ".", "~", "file:")
"""How no name on the hub begins."""


class RuntimeSettings(BaseSettings):
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
    """Threads of the engine and of decoding; by default the cores that the process may use."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image accepted, width × height, checked before a pixel is decoded."""

    max_decode_memory: int | None = Field(default=None, ge=32 * 2**20)
    """Bytes of memory for all images that are decoded at the same time; larger images are refused.
    The default is 256 MiB and 64 MiB for each of `num_threads`: 384 MiB on two cores."""

    max_queue: int = Field(default=64, ge=1)
    """Images that may wait or be worked on; one more is refused with 503."""

    timeout: float = Field(default=30.0, gt=0)
    """Seconds a request may take once accepted; then it is given up with 504."""

    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tinyvit-mlserver"
    """Where converted models are kept; where it cannot be written, they are made at each start."""


@dataclass(frozen=True)
class BatcherLimits:
    """How much the batcher takes at once."""

    max_batch_size: int
    """Images in a batch."""
    max_batch_time: float
    """Seconds that the first image of a batch waits for others."""
    max_queue: int
    """Images admitted and not yet answered; also the most that one request may hold."""


def settings_of(model: ModelSettings) -> RuntimeSettings:
    """The settings of a model. Relative paths in the file are taken from the file's folder, those
    in the environment from the working directory. Raises SettingsError."""
    settings = read_settings((model.parameters and model.parameters.extra) or {})
    in_file = set(extra_of(model))
    base = model_folder(model) if "cache_dir" in in_file else Path.cwd()
    located: dict[str, Any] = {"cache_dir": base / settings.cache_dir.expanduser()}
    in_environment = settings.model_fields_set - in_file
    if "pretrained_model" in in_environment:
        located["pretrained_model"] = _here(settings.pretrained_model, model_folder(model))
    if "fallback" in in_environment and settings.fallback:
        located["fallback"] = absolute(settings.fallback, Path.cwd())
    return settings.model_copy(update=located)


def _here(pretrained_model: str, beside: Path) -> str:
    """The folder, taken from the working directory, or the name on the hub that a variable has;
    raises SettingsError where it would be taken for a folder beside the file."""
    if is_path(pretrained_model, Path.cwd()):
        return absolute(pretrained_model, Path.cwd())
    if is_path(pretrained_model, beside):
        raise SettingsError(
            f"The variable {ENV_PREFIX}PRETRAINED_MODEL={pretrained_model} names no folder in "
            f"{Path.cwd()}, from where it is taken; there is {beside / pretrained_model}."
        )
    return pretrained_model


def is_path(name: str, folder: Path) -> bool:
    """Whether it is a path rather than a name on the hub; `folder` is where it is taken from."""
    return name.startswith(PATH_STARTS) or (name != "" and (folder / name).is_dir())


def absolute(path: str, folder: Path) -> str:
    """The path, also one written as a `file:` address, as taken from `folder`; any other address
    as it is."""
    if path.startswith("file:"):
        path = unquote(urlparse(path).path)
    elif "://" in path:
        return path
    return str((folder / os.path.expanduser(path)).absolute())


def extra_of(model: ModelSettings) -> dict[str, Any]:
    """`parameters.extra` by names in lower case, as they are heard."""
    return in_lower_case((model.parameters and model.parameters.extra) or {})


def in_lower_case(names: Mapping[str, Any]) -> dict[str, Any]:
    """The same by names in lower case; of several the one that has been so already."""
    return {name.lower(): names[name] for name in sorted(names)}


def environment() -> dict[str, str]:
    """The variables by names in upper case: they are heard in any case, of several the last."""
    return {name.upper(): value for name, value in os.environ.items()}


def read_settings(extra: dict[str, Any] | None) -> RuntimeSettings:
    """The settings in `extra`, completed from the environment; raises SettingsError."""
    known = {ENV_PREFIX + name.upper() for name in RuntimeSettings.model_fields}
    strangers = [
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in known
        and not SERVICE_LINK.fullmatch(name.upper())
    ]
    if strangers:
        raise SettingsError(f"{_unknown(strangers)} {_accepted(ENV_PREFIX)}")
    try:
        return RuntimeSettings(**(extra or {}))
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


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
    names = [prefix + (name.upper() if prefix else name) for name in RuntimeSettings.model_fields]
    return f"Known: {', '.join(names)}."


def batcher_limits(model: ModelSettings, settings: RuntimeSettings) -> BatcherLimits:
    """From model-settings.json's `max_batch_size` and `max_batch_time`."""
    return BatcherLimits(
        max(1, model.max_batch_size), abs(model.max_batch_time), settings.max_queue
    )


def keep_in_server_process(model: ModelSettings) -> ModelSettings:
    """Keep MLServer's workers and its adaptive batcher away from a model.

    The batcher concatenates requests along the first axis before the model sees them, which is
    wrong for images of different sizes (SeldonIO/MLServer issues 903, 1306 and 1911). It starts
    only if max_batch_time > 0.
    """
    model.max_batch_time = -abs(model.max_batch_time)
    model.parallel_workers = 0
    return model


def model_folder(model: ModelSettings) -> Path:
    """The folder of model-settings.json; the working directory where there is no such file."""
    return Path(model._source).parent if model._source else Path.cwd()


def read_json(path: str | Path | None) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        content = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def explicit_uri(model: ModelSettings) -> str | None:
    """`parameters.uri` where somebody set it; absolute where that was the environment.

    MLServer fills in the model's own folder, which counts only where it holds a checkpoint.
    """
    uri = model.parameters.uri if model.parameters else None
    folder = model_folder(model)
    if not uri or (uri == str(folder) and not (folder / "config.json").exists()):
        return None
    if uri_in_file(model) or uri == str(folder):
        return uri
    return absolute(uri, Path.cwd())


def uri_in_file(model: ModelSettings) -> str | None:
    """`parameters.uri` of model-settings.json, whose names MLServer takes in any case."""
    parameters = in_lower_case(read_json(model._source)).get("parameters")
    return in_lower_case(parameters).get("uri") if isinstance(parameters, dict) else None
