"""A setting that is ignored is warned of, or ends the start if it was to choose the weights."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlserver.settings import ModelSettings

from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.errors import CheckpointError, SettingsError
from mlserver_timm.settings import explicit_uri, settings_of
from mlserver_timm.settings_check import warn_ignored_settings, warn_once
from tests.support.checkpoints import assert_one_sentence
from tests.support.folders import copy_runtime
from tests.support.paths import ROOT
from tests.support.servers import HOOK, Serve, change_settings, write_settings

SHIPPED = json.loads((ROOT / "tinyvit" / "model-settings.json").read_text())

Settings = Callable[..., ModelSettings]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the server from another folder."""
    warn_once.cache_clear()
    (tmp_path / "started here" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "started here")


@pytest.fixture
def read(tmp_path: Path) -> Settings:
    """Return the shipped settings with additions at each level, as MLServer reads them."""

    def one(
        top: dict[str, Any] | None = None,
        parameters: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> ModelSettings:
        content = json.loads(json.dumps(SHIPPED))
        content["parameters"]["extra"] |= extra or {}
        content["parameters"] |= parameters or {}
        if parameters is None and any(name.lower() == "parameters" for name in top or {}):
            del content["parameters"]
        (tmp_path / "models" / "cats").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "models" / "cats" / "model-settings.json"
        path.write_text(json.dumps(content | (top or {})))
        return ModelSettings.parse_file(str(path))

    return one


def warnings(caplog: pytest.LogCaptureFixture, model: ModelSettings) -> list[str]:
    with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
        assert warn_ignored_settings(model) is model
    for message in caplog.messages:
        assert_one_sentence(message.replace("?", "."))
    return caplog.messages


def refusal(model: ModelSettings) -> str:
    with pytest.raises(SettingsError) as failure:
        warn_ignored_settings(model)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_settings_as_shipped(read: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, read()) == []


@pytest.mark.parametrize(
    "top, parameters, warned",
    [
        ({"max_batchsize": 8}, {}, ["'max_batchsize'", "'max_batch_size'"]),
        ({"comment": "ours"}, {}, ["'comment'"]),
        ({"Versions": [], "versions": []}, {}, ["'Versions'", "'versions' is set too"]),
        ({}, {"extra": {"Engine": "torch", "engine": "auto"}}, ["'parameters.extra.Engine'"]),
        ({"engine": "torch"}, {}, ["'engine'", "'parameters.extra.engine'"]),
        ({}, {"max_batch_size": 8}, ["'parameters.max_batch_size'", "'max_batch_size'"]),
        ({}, {"contenttype": "np"}, ["'parameters.contenttype'", "'parameters.content_type'"]),
    ],
)
def test_unknown_name(
    read: Settings, caplog: pytest.LogCaptureFixture, top: Any, parameters: Any, warned: list[str]
) -> None:
    (message,) = warnings(caplog, read(top, parameters))
    assert all(part in message for part in warned), message


@pytest.mark.parametrize(
    "top, parameters, intended",
    [
        ({}, {"urri": "sample"}, "parameters.uri"),
        ({}, {"pretrained_model": "timm/other"}, "parameters.extra.pretrained_model"),
        ({}, {"extras": {"engine": "torch"}}, "parameters.extra"),
        ({"uri": "sample"}, {}, "parameters.uri"),
        ({"parameter": {"uri": "sample"}}, {}, "parameters"),
        ({"Parameters": {"Urri": "sample"}}, None, "parameters.uri"),
    ],
)
def test_misspelt_name_of_the_weights(
    read: Settings, top: Any, parameters: Any, intended: str
) -> None:
    """The start ends, since other weights would be served."""
    assert f"'{intended}'" in refusal(read(top, parameters))


@pytest.mark.parametrize(("place", "name"), [("cats", "max_batch_size"), (".", "MAX_BATCH_SIZE")])
def test_batching_in_the_servers_file(
    read: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, name: str
) -> None:
    model = read()
    path = tmp_path / "models" / place / "settings.json"
    path.write_text(json.dumps({"debug": False, name: 8}))
    (message,) = warnings(caplog, model)
    assert str(path) in message and f"'{name}'" in message


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"TINYVIT_ENGINE": "torch", "TINYVIT_MAX_QUEUE": "7", "TINYVIT_TIMEOUT": "3"}, "engine"),
        ({"tinyvit_engine": "torch"}, "engine"),
        ({"Tinyvit_Engine": "torch"}, "Engine"),
    ],
)
def test_overridden_variable(
    read: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    name: str,
) -> None:
    """Names may have any case; `max_queue` has the same value in both places."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    (message,) = warnings(caplog, read(extra={name: "openvino", "max_queue": 7}))
    assert "TINYVIT_ENGINE=torch" in message and "'openvino'" in message


MODEL_IN_FILE = SHIPPED["parameters"]["extra"]["pretrained_model"]
CONFLICTS: dict[str, tuple[dict[str, Any], dict[str, str], str | None]] = {
    "same model": ({}, {"TINYVIT_PRETRAINED_MODEL": MODEL_IN_FILE}, None),
    "other model": (
        {},
        {"TINYVIT_PRETRAINED_MODEL": "timm/a.b"},
        "TINYVIT_PRETRAINED_MODEL=timm/a.b",
    ),
    "uri and model": ({"uri": "weights"}, {"TINYVIT_PRETRAINED_MODEL": "/a"}, "'parameters.uri'"),
    "only uri": (
        {"URI": "/weights", "extra": {}},
        {"TINYVIT_PRETRAINED_MODEL": "/a"},
        "'parameters.uri'",
    ),
    "two variables": (
        {},
        {"MLSERVER_MODEL_URI": "/weights", "TINYVIT_PRETRAINED_MODEL": "timm/a.b"},
        "/weights",
    ),
    "fallback": ({}, {"TINYVIT_FALLBACK": "/elsewhere"}, "TINYVIT_FALLBACK=/elsewhere"),
    "uri variable": ({}, {"MLSERVER_MODEL_URI": "/weights"}, None),
    "uri twice": ({"uri": "/other"}, {"MLSERVER_MODEL_URI": "/weights"}, "=/weights"),
}
"""Parameters in the file, variables, and part of the error, or None without a conflict."""


@pytest.mark.parametrize("name", CONFLICTS)
def test_weights_chosen_twice(read: Settings, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An error names the setting that decides."""
    parameters, variables, error = CONFLICTS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    model = read(parameters=parameters)
    if error is None:
        warn_ignored_settings(model)
    else:
        assert error in refusal(model)


def test_weights_overridden_by_the_models_own_folder(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLServer passes that folder as the uri."""
    folder = tmp_path / "models" / "cats"
    model = read()
    (folder / "config.json").write_text("{}")
    model.parameters.uri = str(folder)
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert str(folder) in refusal(model)


def test_a_variable_that_names_other_weights_than_the_models_own_folder(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read()
    monkeypatch.setenv("MLSERVER_MODEL_URI", str(tmp_path))
    model.parameters.uri = str(tmp_path)
    warn_ignored_settings(model)
    (tmp_path / "models" / "cats" / "model.xml").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    model.parameters.uri = str(tmp_path / "link" / "cats")
    warn_ignored_settings(model)
    model.parameters.uri = str(tmp_path)
    assert "MLSERVER_MODEL_URI" in refusal(model)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("value", ["-1", "nan"])
def test_a_batch_time_that_is_no_time(
    read: Settings, monkeypatch: pytest.MonkeyPatch, value: str, in_file: bool
) -> None:
    model = read({"max_batch_time": float(value)})
    if not in_file:
        monkeypatch.setenv("MLSERVER_MODEL_MAX_BATCH_TIME", value)
        Path(model._source).write_text("{}")
    assert "max_batch_time" in refusal(model)


def test_same_weights_twice(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names of one folder are no conflict."""
    model = read(parameters={"uri": "weights"})
    (tmp_path / "models" / "cats" / "weights").mkdir()
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "../models/cats/weights")
    monkeypatch.setenv("MLSERVER_MODEL_URI", str(tmp_path / "models" / "cats" / "weights"))
    warn_ignored_settings(model)


def test_upper_case_is_accepted(
    read: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLServer accepts it, and so does this runtime."""
    model = read({"Versions": ["1"]}, {"URI": "weights"})
    assert (model.versions, explicit_uri(model)) == (["1"], "weights")
    assert warnings(caplog, model) == []
    monkeypatch.setenv("MLSERVER_MODEL_URI", "/weights")
    assert "MLSERVER_MODEL_URI=/weights" in refusal(model)


def test_relative_paths_in_the_file(read: Settings, tmp_path: Path) -> None:
    """They are relative to the file."""
    model = read(parameters={"uri": "weights"}, extra={"cache_dir": "cache"})
    assert explicit_uri(model) == "weights", "which is looked up next to the file"
    assert settings_of(model).cache_dir == tmp_path / "models" / "cats" / "cache"


def test_relative_paths_in_the_environment(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are relative to the working directory."""
    model = read()
    del model.parameters.extra["pretrained_model"], model.parameters.extra["fallback"]
    here = tmp_path / "started here"
    for name in ("PRETRAINED_MODEL", "FALLBACK", "CACHE_DIR"):
        monkeypatch.setenv(f"TINYVIT_{name}", "weights")
    settings = settings_of(model)
    assert settings.pretrained_model == settings.fallback == str(here / "weights")
    assert settings.cache_dir == here / "weights"
    for uri in ("not/there", "file:not/there"):
        monkeypatch.setenv("MLSERVER_MODEL_URI", uri)
        assert explicit_uri(read()) == str(here / "not" / "there")
    monkeypatch.setenv("MLSERVER_MODEL_URI", "s3://bucket/weights")
    assert explicit_uri(read()) == "s3://bucket/weights"


def test_missing_relative_paths_in_the_environment(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder next to the file is not used instead."""
    model = read()
    del model.parameters.extra["pretrained_model"], model.parameters.extra["fallback"]
    here, next_to_file = tmp_path / "started here", tmp_path / "models" / "cats"
    (next_to_file / "sample").mkdir()
    monkeypatch.setenv("TINYVIT_FALLBACK", "sample")
    for name in ("./sample", "file:sample"):
        monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", name)
        settings = settings_of(model)
        assert settings.pretrained_model == settings.fallback == str(here / "sample")
        with pytest.raises(CheckpointError, match=re.escape(str(here / "sample"))):
            find_checkpoint(None, settings.pretrained_model, settings.fallback, next_to_file)
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "sample")
    with pytest.raises(SettingsError, match=re.escape(str(here))) as failure:
        settings_of(model)
    assert str(next_to_file / "sample") in str(failure.value)


def test_relative_paths_with_names_in_upper_case(read: Settings, tmp_path: Path) -> None:
    """They are relative to the file, also if the working directory has such a folder."""
    model = read(parameters={"extra": {"Pretrained_Model": "weights", "Cache_Dir": "cache"}})
    settings = settings_of(model)
    assert settings.pretrained_model == "weights", "which is looked up next to the file"
    assert settings.cache_dir == tmp_path / "models" / "cats" / "cache"


def test_names_on_the_hub_are_not_paths(read: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read()
    del model.parameters.extra["pretrained_model"]
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert settings_of(model).pretrained_model == "timm/resnet18.a1_in1k"


def test_one_warning_at_the_start(serve: Serve, tmp_path: Path) -> None:
    folder = copy_runtime(tmp_path)
    write_settings(folder, **HOOK, parallel_workers=2)
    change_settings(folder, max_batchsize=8)
    log = serve(folder=folder, timeout=400).output()
    assert log.count("'max_batchsize'") == 1
    assert "WARNING" in next(line for line in log.splitlines() if "max_batchsize" in line)


def test_start_ends(serve: Serve, tmp_path: Path) -> None:
    """One sentence without a traceback, if another model would be served."""
    folder = copy_runtime(tmp_path)
    change_settings(folder, parameters={"urri": "sample"})
    server = serve(folder=folder, ready=False)
    assert server.process.wait(120) == 1
    log = server.output()
    assert "'parameters.urri'" in log.splitlines()[-1]
    assert "Traceback" not in log
