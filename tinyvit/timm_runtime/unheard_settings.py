"""Settings that MLServer or this runtime would pass over without a word."""

import difflib
import logging
import multiprocessing
import os
from collections.abc import Collection, Iterator
from typing import Any

from mlserver.settings import ModelParameters, ModelSettings

from .errors import SettingsError
from .settings import (
    ENV_PREFIX,
    RuntimeSettings,
    explicit_uri,
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

logger = logging.getLogger("mlserver.tinyvit")


def check_heard(model: ModelSettings) -> ModelSettings:
    """Warns, once a setting, of what is not heard; raises SettingsError where another model than
    the one that is meant would be served."""
    if hasattr(multiprocessing.current_process(), "_settings"):
        return model  # a worker; the main process has said it
    for sentence in (*_unknown(model), *_in_the_wrong_file(model), *_overruled(model)):
        logger.warning("%s", sentence)
    return model


def _unknown(model: ModelSettings) -> Iterator[str]:
    parameters = (model.parameters and model.parameters.model_extra) or {}
    yield from _strangers(read_json(model._source), MODEL_NAMES, "")
    yield from _strangers(parameters, PARAMETERS, "parameters.")


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


def _in_the_wrong_file(model: ModelSettings) -> Iterator[str]:
    """MLServer's settings.json lies beside model-settings.json, or above the models' folders."""
    for folder in (model_folder(model), model_folder(model).parent):
        for name in sorted(BATCHING & set(read_json(folder / "settings.json"))):
            yield (
                f"The setting '{name}' in {folder / 'settings.json'} is not heard; it belongs in "
                f"model-settings.json."
            )


def _overruled(model: ModelSettings) -> Iterator[str]:
    uri = uri_in_file(model)
    if uri and os.environ.get(URI_VARIABLE, uri) != uri:
        raise SettingsError(_both(URI_VARIABLE, "parameters.uri", uri))
    extra = (model.parameters and model.parameters.extra) or {}
    for name in sorted(EXTRA & set(extra)):
        variable = ENV_PREFIX + name.upper()
        if os.environ.get(variable, str(extra[name])) == str(extra[name]):
            continue
        sentence = _both(variable, f"parameters.extra.{name}", extra[name])
        if name == "pretrained_model" and not explicit_uri(model):
            raise SettingsError(sentence)
        yield sentence


def _both(variable: str, name: str, value: Any) -> str:
    return (
        f"The variable {variable}={os.environ[variable]} is not heard, because model-settings.json "
        f"has the value {value!r} for '{name}': take one of them out."
    )
