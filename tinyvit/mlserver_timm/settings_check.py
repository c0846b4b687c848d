"""Settings that MLServer or this runtime would ignore without a message."""

import difflib
import functools
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlserver.settings import ModelParameters, ModelSettings
from pydantic import TypeAdapter, ValidationError

from mlserver_timm import settings
from mlserver_timm.errors import SettingsError
from mlserver_timm.settings import ENV_PREFIX, environment, in_lower_case, model_folder, read_json

SERVER_PREFIX, MODEL_PREFIX = "MLSERVER_", "MLSERVER_MODEL_"
MODEL = {*ModelSettings.model_fields} - {"implementation_"} | {"implementation"}
PARAMETERS, EXTRA = ModelParameters.model_fields, settings.RuntimeSettings.model_fields
PLACES = {
    **{name: f"parameters.extra.{name}" for name in EXTRA},
    **{name: f"parameters.{name}" for name in PARAMETERS},
    **{name: name for name in MODEL},
}
"""Where each setting of model-settings.json belongs."""

CHOOSE_THE_MODEL = {"parameters", "uri", "extra", "pretrained_model", "fallback"}
"""If one of these were ignored, the server would use other weights than the setting asks for."""

BATCHING = {"max_batch_size", "max_batch_time"}
FOLDERS = {"uri", "fallback", "cache_dir"}

logger = logging.getLogger("mlserver.tinyvit")
warn_once = functools.cache(logger.warning)
"""Logs a warning once: each model of a server would repeat the warnings about its settings.json."""


class Level(NamedTuple):
    """An object in a settings file."""

    file: Path | str
    place: str
    values: Mapping[str, Any]
    valid_names: Collection[str]
    prefix: str
    """Prefix of the variables for the same settings; the file's values override the variables."""


def warn_ignored_settings(model: ModelSettings) -> ModelSettings:
    """Log a warning for each setting that is ignored, and return the settings.

    Raises SettingsError if the server would use other weights than a setting asks for.
    """
    uri = settings.explicit_uri(model)
    _check_pretrained_variable(model, uri)
    _check_uri_variable(model, uri)
    _check_batch_time(model)
    by_uri = {"pretrained_model", "fallback"} if uri else set()
    for name, sentence in _ignored(model):
        if name in CHOOSE_THE_MODEL - by_uri:
            raise SettingsError(sentence)
        warn_once("%s", sentence)
    return model


def _check_pretrained_variable(model: ModelSettings, uri: str | None) -> None:
    name = "pretrained_model"
    variable = ENV_PREFIX + name.upper()
    text = environment().get(variable)
    if uri and text and not _is_same(name, text, uri, model_folder(model)):
        raise SettingsError(
            f"The variable {variable}={text} is ignored: 'parameters.uri', MLSERVER_MODEL_URI or a "
            f"checkpoint or export next to model-settings.json names {uri}. Remove one of them."
        )


def _check_uri_variable(model: ModelSettings, uri: str | None) -> None:
    folder = model_folder(model)
    in_file = in_lower_case(settings.parameters_in_file(model)).get("uri")
    is_other = uri and not in_file and Path(uri).resolve() != folder.resolve()
    if is_other and settings.holds_network(folder):
        raise SettingsError(
            f"The variable MLSERVER_MODEL_URI names {uri}, but the folder {folder} holds a network "
            f"itself. Unset the variable, or remove the network from the folder."
        )


def _check_batch_time(model: ModelSettings) -> None:
    name = "max_batch_time"
    variable = environment().get(MODEL_PREFIX + name.upper())
    value = in_lower_case(read_json(model._source)).get(name, variable)
    if value is not None and not float(value) >= 0:
        raise SettingsError(f"The setting '{name}' is {value}: use 0, or a number of seconds.")


def _ignored(model: ModelSettings) -> Iterator[tuple[str, str]]:
    """Yield the name and a sentence for each setting that is ignored.

    MLServer ignores the case of names. If a name occurs twice, the one in lower case is used.
    """
    for level in _levels(model):
        for name, value in sorted(level.values.items()):
            lower, where = name.lower(), f"'{level.place}{name}' in {level.file}"
            if lower not in level.valid_names:
                meant, hint = _suggestion(lower, level)
                yield meant, f"The setting {where} is ignored: {hint}"
            elif name != lower and lower in level.values:
                yield lower, f"The setting {where} is ignored: '{level.place}{lower}' is set too."
            elif sentence := _overridden_variable(lower, value, where, level, model_folder(model)):
                yield lower, sentence


def _levels(model: ModelSettings) -> Iterator[Level]:
    """Yield what the model's file and the server's, here or in the folder above, contain."""
    file = model._source or "model-settings.json"
    yield Level(file, "", read_json(model._source), MODEL, MODEL_PREFIX)
    parameters = settings.parameters_in_file(model)
    yield Level(file, "parameters.", parameters, PARAMETERS, MODEL_PREFIX)
    yield Level(file, "parameters.extra.", settings.extra_of(model), EXTRA, ENV_PREFIX)
    for folder in (model_folder(model), model_folder(model).parent):
        path = folder / "settings.json"
        values = read_json(path)
        yield Level(path, "", values, {*in_lower_case(values)} - BATCHING, SERVER_PREFIX)


def _suggestion(name: str, level: Level) -> tuple[str, str]:
    """Return the setting that was probably meant, and a sentence that says so."""
    places = PLACES | {each: level.place + each for each in level.valid_names}
    for match in difflib.get_close_matches(name, places, 1, cutoff=0.65):
        return match, f"did you mean '{places[match]}' in model-settings.json?"
    return "", "the name is unknown."


def _overridden_variable(
    name: str, value: Any, where: str, level: Level, folder: Path
) -> str | None:
    variable = level.prefix + name.upper()
    text = environment().get(variable)
    if text is None or isinstance(value, (dict, list)) or _is_same(name, text, value, folder):
        return None
    given, value = _meaning(name, text, Path.cwd()), _meaning(name, value, folder)
    return f"The variable {variable}={given} is ignored: {where} is {value!r}. Remove one of them."


def _is_same(name: str, text: str, value: Any, folder: Path) -> bool:
    """Return whether a variable means the same as a value in a file of `folder`."""
    value = _meaning(name, value, folder)
    try:
        given = TypeAdapter(type(value)).validate_python(_meaning(name, text, Path.cwd()))
    except ValidationError:
        return False
    return bool(given == value)


def _meaning(name: str, value: Any, folder: Path) -> Any:
    """Return the value; a path is returned absolute, taken from `folder`."""
    if name in FOLDERS or (name == "pretrained_model" and settings.is_path(str(value), folder)):
        return str(Path(settings.absolute(str(value), folder)).resolve())
    return value
