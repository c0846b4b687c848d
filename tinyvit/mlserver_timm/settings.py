"""The settings: `parameters.extra` of model-settings.json, `TINYVIT_*` variables, and the limits
and paths in MLServer's own settings."""

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
from mlserver_timm.memory import share

ENV_PREFIX = "TINYVIT_"

SERVICE_LINK = re.compile(ENV_PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")
"""Variables that Kubernetes sets in each pod for Services such as tinyvit or tinyvit-canary."""

DECODE_MEMORY, DECODE_MEMORY_A_THREAD = 256 * 2**20, 64 * 2**20
"""Bytes for one large image, and for an image of 12 megapixels."""

MIN_DECODE_MEMORY = 32 * 2**20
"""Bytes in which images of 2 megapixels can be decoded."""

DECODE_SHARE = 0.25
"""Maximum share of the container's memory for decoding by default. The network, MLServer and idle
decoders take 470 MiB with TinyViT-5M on two cores, bodies and gRPC messages an eighth each."""

NETWORK_FILES = ("config.json", "model.xml")
"""Files by which a folder is known as a checkpoint or as an export."""

PATH_STARTS = ("/", ".", "~", "file:")
"""Names on the hub never start like this."""


class RuntimeSettings(BaseSettings):
    """Settings of the runtime; a value in the file wins over the environment, as in MLServer.

    Each name is also an environment variable: `engine` is `TINYVIT_ENGINE`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=(), frozen=True
    )

    pretrained_model: str = "timm/tiny_vit_5m_224.dist_in22k"
    """Hub id of a timm image classifier, optionally with `@revision`, or a folder."""

    fallback: str | None = None
    """Checkpoint folder that is served if the hub cannot be reached and nothing is cached."""

    engine: Literal["auto", "openvino", "torch"] = "auto"
    """`auto`: torch on a GPU, else openvino if it is installed, else torch."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass. `fp32` gives timm's scores; `bf16` is faster and inexact."""

    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of the engine and of decoding; default: the cores that the process may use. The
    maximum keeps a typing error from starting thousands of processes."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """Maximum width × height of an image, checked before a pixel is decoded."""

    max_decode_memory: int | None = Field(default=None, ge=MIN_DECODE_MEMORY, le=2**50)
    """Maximum bytes of memory for all images that are decoded at the same time. Default: 256 MiB
    and 64 MiB for each thread, but at most a quarter of the container's memory."""

    max_queue: int = Field(default=64, ge=1)
    """Maximum number of images that wait or are computed; the next one is refused with 503."""

    timeout: float = Field(default=30.0, gt=0)
    """Seconds that an accepted request may take; then it is answered with 504."""

    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tinyvit-mlserver"
    """Folder for converted networks. If it cannot be written, each start converts the network."""

    def decode_memory(self, threads: int) -> int:
        """Return the maximum bytes of memory for decoding."""
        default = share(DECODE_SHARE, DECODE_MEMORY + threads * DECODE_MEMORY_A_THREAD)
        return self.max_decode_memory or max(MIN_DECODE_MEMORY, default)


@dataclass(frozen=True)
class BatcherLimits:
    """Limits of the batcher."""

    max_batch_size: int
    """Images in a batch."""
    max_batch_time: float
    """Seconds that the first image of a batch waits for others."""
    max_queue: int
    """Images admitted and not yet answered, also of one request."""


def settings_of(model: ModelSettings) -> RuntimeSettings:
    """Return the settings of a model.

    Relative paths in the file are taken from the file's folder, those in the environment from the
    working directory. Raises SettingsError.
    """
    settings = read_settings(extra_of(model))
    in_file = set(in_lower_case(extra_of(model)))
    base = model_folder(model) if "cache_dir" in in_file else Path.cwd()
    located: dict[str, Any] = {"cache_dir": base / os.path.expanduser(settings.cache_dir)}
    in_environment = settings.model_fields_set - in_file
    if "pretrained_model" in in_environment:
        located["pretrained_model"] = _locate(settings.pretrained_model, model_folder(model))
    if "fallback" in in_environment and settings.fallback:
        located["fallback"] = absolute(settings.fallback, Path.cwd())
    return settings.model_copy(update=located)


def _locate(pretrained_model: str, folder: Path) -> str:
    """Return a variable's folder, taken from the working directory, or its hub id.

    Raises SettingsError if `folder`, that of model-settings.json, has a folder of this name.
    """
    if is_path(pretrained_model, Path.cwd()):
        return absolute(pretrained_model, Path.cwd())
    if is_path(pretrained_model, folder):
        raise SettingsError(
            f"The variable {ENV_PREFIX}PRETRAINED_MODEL={pretrained_model} names no folder in "
            f"the working directory {Path.cwd()}. Did you mean {folder / pretrained_model}?"
        )
    return pretrained_model


def is_path(name: str, folder: Path) -> bool:
    """Return whether a name is a path, also relative to `folder`, and not a hub id."""
    return name.startswith(PATH_STARTS) or (name != "" and os.path.isdir(folder / name))


def absolute(path: str, folder: Path) -> str:
    """Return a path or a `file:` URL as a path, relative to `folder`; other URLs unchanged."""
    if path.startswith("file:"):
        path = unquote(urlparse(path).path)
    elif "://" in path:
        return path
    return str((folder / os.path.expanduser(path)).absolute())


def extra_of(model: ModelSettings) -> dict[str, Any]:
    """Return `parameters.extra`."""
    return (model.parameters and model.parameters.extra) or {}


def in_lower_case(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by names in lower case, in which MLServer reads them."""
    return {name.lower(): values[name] for name in sorted(values)}


def environment() -> dict[str, str]:
    """Return the variables by names in upper case; settings are read in any case."""
    return {name.upper(): value for name, value in os.environ.items()}


def read_settings(extra: dict[str, Any] | None) -> RuntimeSettings:
    """Return the settings in `extra`, completed from the environment; raises SettingsError."""
    valid_names = [ENV_PREFIX + name.upper() for name in RuntimeSettings.model_fields]
    unknown = [
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in valid_names
        and not SERVICE_LINK.fullmatch(name.upper())
    ]
    if unknown:
        raise _unknown_settings(unknown, valid_names)
    try:
        return RuntimeSettings(**(extra or {}))
    except ValidationError as error:
        problems = error.errors()
    unknown = [str(p["loc"][0]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        raise _unknown_settings(unknown, list(RuntimeSettings.model_fields))
    problem = problems[0]
    raise SettingsError(
        f"The setting '{problem['loc'][0]}' has the invalid value {str(problem['input'])[:60]!r}: "
        f"{problem['msg']}."
    )


def _unknown_settings(names: list[str], valid_names: list[str]) -> SettingsError:
    unknown = ", ".join(repr(name) for name in names)
    return SettingsError(f"Unknown setting {unknown}. Known: {', '.join(valid_names)}.")


def batcher_limits(model: ModelSettings, settings: RuntimeSettings) -> BatcherLimits:
    """Return the limits in model-settings.json's `max_batch_size` and `max_batch_time`; a batch is
    never larger than the queue."""
    size = min(max(1, model.max_batch_size), settings.max_queue)
    return BatcherLimits(size, abs(model.max_batch_time), settings.max_queue)


def keep_in_server_process(model: ModelSettings) -> ModelSettings:
    """Keep MLServer's workers and its adaptive batcher away from a model.

    The batcher concatenates requests along the first axis before the model sees them, which is
    wrong for images of different sizes (SeldonIO/MLServer issues 903, 1306 and 1911). It starts
    only if max_batch_time > 0.
    """
    model.max_batch_time = -abs(model.max_batch_time)
    model.parallel_workers = 0
    return model


def read_model_settings(path: str | Path) -> ModelSettings:
    """Return a model-settings.json as MLServer reads it; raises SettingsError with the line."""
    text = ""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not isinstance(json.loads(text), dict):
            raise ValueError('expected a JSON object, such as {"implementation": ...}')
        model = ModelSettings.parse_file(str(path))
        _check_implementation(model)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise SettingsError(f"{path} cannot be read: it is nested too deeply.") from None
    except ValueError as error:
        line, reason = _explain(error, text)
        raise SettingsError(f"{path} cannot be read: line {line}: {reason}.") from None
    return model


def _check_implementation(model: ModelSettings) -> None:
    """Raise ValueError if the class does not exist.

    Other errors of its module are left to the load, which logs where they come from.
    """
    path = model.implementation_
    try:
        model.implementation  # noqa: B018  # imports the class
    except Exception as error:
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        is_import_error = getattr(error, "type", None) == "import_error"  # of pydantic
        if is_import_error or (name and f"{path}.".startswith(f"{name}.")):
            raise ValueError(f"'implementation' is {path!r}: {error}") from None


def _explain(error: ValueError, text: str) -> tuple[int, str]:
    """Return the line of an error in a settings file, and the reason."""
    if isinstance(error, UnicodeDecodeError):
        return 1, "save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.msg
    name, reason = "implementation", str(error)
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        reason = f"'{'.'.join(map(str, problem['loc']))}': {problem['msg'].lower()}"
    before, match, _ = text.lower().partition(f'"{name.lower()}"')
    return before.count("\n") + 1 if match else 1, reason


def model_folder(model: ModelSettings) -> Path:
    """Return the folder of model-settings.json; without such a file, the working directory."""
    return Path(model._source).parent if model._source else Path.cwd()


def read_json(path: str | Path | None) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is none."""
    try:
        content = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def parameters_in_file(model: ModelSettings) -> dict[str, Any]:
    """Return `parameters` of model-settings.json."""
    parameters = in_lower_case(read_json(model._source)).get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def holds_network(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint or an export."""
    return any((folder / name).exists() for name in NETWORK_FILES)


def explicit_uri(model: ModelSettings) -> str | None:
    """Return `parameters.uri` if the file or the environment sets it; absolute for the latter.

    MLServer sets it to the model's own folder, which counts only if it holds a checkpoint or an
    export.
    """
    uri = model.parameters.uri if model.parameters else None
    folder = model_folder(model)
    if not uri or (uri == str(folder) and not holds_network(folder)):
        return None
    if in_lower_case(parameters_in_file(model)).get("uri") or uri == str(folder):
        return uri
    return absolute(uri, Path.cwd())
