"""Settings that MLServer or this runtime would pass over without a word."""

import difflib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mlserver.settings import ModelParameters, ModelSettings

from mlserver_timm.errors import SettingsError
from mlserver_timm.settings import (
    ENV_PREFIX,
    RuntimeSettings,
    absolute,
    environment,
    explicit_uri,
    extra_of,
    in_lower_case,
    is_path,
    model_folder,
    read_json,
    uri_in_file,
)

MODEL_NAMES = {*ModelSettings.model_fields} - {"implementation_"} | {"implementation"}
PARAMETERS = set(ModelParameters.model_fields)
EXTRA = set(RuntimeSettings.model_fields)

CHOOSE_THE_MODEL = {"parameters", "uri", "extra", "pretrained_model", "fallback"}
"""Unheard, they would have other weights served than those that were asked for."""

BATCHING = {"max_batch_size", "max_batch_time"}
URI_VARIABLE = "MLSERVER_MODEL_URI"
PRETRAINED_VARIABLE = ENV_PREFIX + "PRETRAINED_MODEL"

FOLDERS = {"uri", "fallback", "cache_dir"}
"""Settings that are paths; a pretrained_model may be one."""

logger = logging.getLogger("mlserver.tinyvit")


def warn_ignored_settings(model: ModelSettings) -> ModelSettings:
    """Warns, once a setting, of what is not heard; raises SettingsError where another model than
    the one that is meant would be served."""
    _check_one_model_is_named(model)
    for sentence in (*_unknown(model), *_in_the_wrong_file(model), *_overruled(model)):
        logger.warning("%s", sentence)
    return model


def _unknown(model: ModelSettings) -> Iterator[str]:
    """Of the file, since MLServer's own image has every setting of it in an `.env` too."""
    content = read_json(model._source)
    parameters = in_lower_case(content).get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    yield from _strangers(content, MODEL_NAMES, "")
    yield from _strangers(parameters, PARAMETERS, "parameters.")
    yield from _twice(content, "")
    yield from _twice(parameters, "parameters.")
    yield from _twice((model.parameters and model.parameters.extra) or {}, "parameters.extra.")


def _strangers(names: Collection[str], known: Collection[str], where: str) -> Iterator[str]:
    everything = {name: name for name in MODEL_NAMES}
    everything |= {name: f"parameters.{name}" for name in PARAMETERS}
    everything |= {name: f"parameters.extra.{name}" for name in EXTRA}
    everything |= {name: where + name for name in known}
    for name in sorted(name for name in names if name.lower() not in known):
        meant = difflib.get_close_matches(name.lower(), everything, 1, cutoff=0.65)
        sentence = f"The setting '{where}{name}' in model-settings.json is not heard"
        sentence += f"; is '{everything[meant[0]]}' meant?" if meant else ": nothing has this name."
        if meant and meant[0] in CHOOSE_THE_MODEL:
            raise SettingsError(sentence)
        yield sentence


def _twice(names: Collection[str], where: str) -> Iterator[str]:
    """Names that are there in lower case too, which is heard then."""
    for name in sorted(name for name in names if name != name.lower() and name.lower() in names):
        sentence = (
            f"The setting '{where}{name}' in model-settings.json is not heard, because "
            f"'{where}{name.lower()}' is there too."
        )
        if name.lower() in CHOOSE_THE_MODEL:
            raise SettingsError(sentence)
        yield sentence


def _in_the_wrong_file(model: ModelSettings) -> Iterator[str]:
    """MLServer's settings.json lies beside model-settings.json, or above the models' folders."""
    for folder in (model_folder(model), model_folder(model).parent):
        for name in sorted(read_json(folder / "settings.json")):
            if name.lower() not in BATCHING:
                continue
            yield (
                f"The setting '{name}' in {folder / 'settings.json'} is not heard; it belongs in "
                f"model-settings.json."
            )


def _check_one_model_is_named(model: ModelSettings) -> None:
    """Raises SettingsError where a variable names another model than the uri that decides."""
    in_file, uri = uri_in_file(model), explicit_uri(model)
    if in_file and _differs(model, "uri", URI_VARIABLE, in_file):
        raise SettingsError(_both(model, "uri", URI_VARIABLE, "parameters.uri", in_file))
    if not uri or not _differs(model, "pretrained_model", PRETRAINED_VARIABLE, uri):
        return
    raise SettingsError(
        f"The variable {PRETRAINED_VARIABLE}={environment()[PRETRAINED_VARIABLE]} is not heard, "
        f"because {_deciding(in_file, uri)}: take one of them out."
    )


def _deciding(in_file: str | None, uri: str) -> str:
    if in_file:
        return f"model-settings.json has the value {in_file!r} for 'parameters.uri'"
    if URI_VARIABLE in environment():
        return f"the variable {URI_VARIABLE}={environment()[URI_VARIABLE]} is there"
    return f"there is a checkpoint beside model-settings.json in {uri}"


def _overruled(model: ModelSettings) -> Iterator[str]:
    for name, value in sorted(extra_of(model).items()):
        variable = ENV_PREFIX + name.upper()
        if name not in EXTRA or not _differs(model, name, variable, value):
            continue
        sentence = _both(model, name, variable, f"parameters.extra.{name}", value)
        if name in CHOOSE_THE_MODEL and not explicit_uri(model):
            raise SettingsError(sentence)
        yield sentence


def _differs(model: ModelSettings, name: str, variable: str, value: Any) -> bool:
    """Whether the variable is there and means something else than the file's value does."""
    if variable not in environment():
        return False
    return _meant(name, environment()[variable], Path.cwd()) != _meant(
        name, value, model_folder(model)
    )


def _meant(name: str, value: Any, folder: Path) -> str:
    """The value as text, a path as taken from `folder`."""
    if name in FOLDERS or (name == "pretrained_model" and is_path(str(value), folder)):
        return str(Path(absolute(str(value), folder)).resolve())
    return str(value)


def _both(model: ModelSettings, name: str, variable: str, place: str, value: Any) -> str:
    text = environment()[variable]
    if text == value:  # the same path, taken from two folders
        text, value = _meant(name, text, Path.cwd()), _meant(name, value, model_folder(model))
    meanwhile = ", to serve where the hub is out of reach" if name == "fallback" else ""
    return (
        f"The variable {variable}={text} is not heard, because model-settings.json has the value "
        f"{value!r} for '{place}'{meanwhile}: take one of them out."
    )
