"""A setting that nobody hears is said, or ends the start where it would have chosen the weights."""

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
from tests.support.paths import ROOT
from tests.support.servers import Serve, settings as copy_of_tinyvit

SHIPPED = json.loads((ROOT / "tinyvit" / "model-settings.json").read_text())

Settings = Callable[..., ModelSettings]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is started from some other folder."""
    warn_once.cache_clear()
    (tmp_path / "started here" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "started here")


@pytest.fixture
def read(tmp_path: Path) -> Settings:
    """The settings as MLServer reads them: what is shipped, and on each level something more."""

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
    "top, parameters, told",
    [
        ({"max_batchsize": 8}, {}, ["'max_batchsize'", "'max_batch_size'"]),
        ({"comment": "ours"}, {}, ["'comment'", "unknown"]),
        ({"Parameters": {"Contenttype": "np"}}, None, ["'parameters.Contenttype'"]),
        ({"Versions": [], "versions": []}, {}, ["'Versions'", "'versions' is set too"]),
        ({}, {"extra": {"Engine": "torch", "engine": "auto"}}, ["'parameters.extra.Engine'"]),
        ({"engine": "torch"}, {}, ["'engine'", "'parameters.extra.engine'"]),
        ({}, {"max_batch_size": 8}, ["'parameters.max_batch_size'", "'max_batch_size'"]),
        ({}, {"num_threads": 2}, ["'parameters.num_threads'", "'parameters.extra.num_threads'"]),
        ({}, {"contenttype": "np"}, ["'parameters.contenttype'", "'parameters.content_type'"]),
    ],
)
def test_unknown_name(
    read: Settings, caplog: pytest.LogCaptureFixture, top: Any, parameters: Any, told: list[str]
) -> None:
    (message,) = warnings(caplog, read(top, parameters))
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    "top, parameters, meant",
    [
        ({}, {"urri": "sample"}, "parameters.uri"),
        ({}, {"url": "sample"}, "parameters.uri"),
        ({}, {"pretrainedmodel": "timm/other"}, "parameters.extra.pretrained_model"),
        ({}, {"pretrained_model": "timm/other"}, "parameters.extra.pretrained_model"),
        ({}, {"extras": {"engine": "torch"}}, "parameters.extra"),
        ({"uri": "sample"}, {}, "parameters.uri"),
        ({"parameter": {"uri": "sample"}}, {}, "parameters"),
        ({"Parameters": {"Urri": "sample"}}, None, "parameters.uri"),
        ({}, {"URI": "sample", "uri": "other"}, "parameters.uri"),
        ({"pretrained_model": "timm/other"}, {}, "parameters.extra.pretrained_model"),
    ],
)
def test_name_that_was_to_choose_the_weights(
    read: Settings, top: Any, parameters: Any, meant: str
) -> None:
    """Others would be served."""
    assert f"'{meant}'" in refusal(read(top, parameters))


@pytest.mark.parametrize("name", ["max_batch_size", "MAX_BATCH_SIZE"])
@pytest.mark.parametrize("place", ["cats", "."])
def test_batching_in_the_servers_file(
    read: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, name: str
) -> None:
    model = read()
    path = tmp_path / "models" / place / "settings.json"
    path.write_text(json.dumps({"debug": False, name: 8}))
    (message,) = warnings(caplog, model)
    assert str(path) in message and f"'{name}'" in message


def test_variable_that_is_overruled(
    read: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYVIT_ENGINE", "torch")
    monkeypatch.setenv("TINYVIT_MAX_QUEUE", "7")
    monkeypatch.setenv("TINYVIT_TIMEOUT", "3")
    (message,) = warnings(caplog, read(extra={"engine": "openvino", "max_queue": 7}))
    assert "TINYVIT_ENGINE=torch" in message and "'openvino'" in message


@pytest.mark.parametrize("variable", ["TINYVIT_ENGINE", "tinyvit_engine", "Tinyvit_Engine"])
@pytest.mark.parametrize("name", ["engine", "Engine"])
def test_variable_and_name_in_any_case(
    read: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    name: str,
) -> None:
    """All of them are heard, and so each may be overruled."""
    monkeypatch.setenv(variable, "torch")
    (message,) = warnings(caplog, read(extra={name: "openvino"}))
    assert "TINYVIT_ENGINE=torch" in message and "'openvino'" in message


def test_weights_that_are_overruled(read: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert "TINYVIT_PRETRAINED_MODEL=timm/resnet18.a1_in1k" in refusal(read())
    monkeypatch.setenv(
        "TINYVIT_PRETRAINED_MODEL", SHIPPED["parameters"]["extra"]["pretrained_model"]
    )
    warn_ignored_settings(read())


@pytest.mark.parametrize("extra", [SHIPPED["parameters"]["extra"], {}], ids=["both", "uri"])
@pytest.mark.parametrize("uri", [{"uri": "weights"}, {"URI": "/weights"}], ids=str)
def test_weights_that_a_uri_overrules(
    read: Settings, monkeypatch: pytest.MonkeyPatch, extra: dict[str, str], uri: dict[str, str]
) -> None:
    """The sentence blames what decides."""
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "/some/checkpoint")
    told = refusal(read(parameters={**uri, "extra": extra}))
    assert "TINYVIT_PRETRAINED_MODEL=/some/checkpoint" in told
    assert "'parameters.uri'" in told and "pretrained_model'" not in told


def test_weights_that_another_variable_overrules(
    read: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSERVER_MODEL_URI", "/weights")
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert "names /weights" in refusal(read())


def test_weights_that_the_models_own_folder_overrules(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLServer names it as the uri."""
    folder = tmp_path / "models" / "cats"
    model = read()
    (folder / "config.json").write_text("{}")
    model.parameters.uri = str(folder)
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert f"beside model-settings.json names {folder}" in refusal(model)


def test_same_weights_twice(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two names of one folder: the model that is meant is served."""
    model = read(parameters={"uri": "weights"})
    (tmp_path / "models" / "cats" / "weights").mkdir()
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "../models/cats/weights")
    monkeypatch.setenv("MLSERVER_MODEL_URI", str(tmp_path / "models" / "cats" / "weights"))
    warn_ignored_settings(model)


@pytest.mark.parametrize("value", ["/elsewhere", "sample"])
def test_fallback_that_is_overruled(
    read: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """It could be served as soon as the hub is out of reach; not where a uri decides."""
    monkeypatch.setenv("TINYVIT_FALLBACK", value)
    told = refusal(read())
    assert f"{value} is ignored" in told
    (message,) = warnings(caplog, read(parameters={"uri": "weights"}))
    assert "TINYVIT_FALLBACK" in message


def test_uri_that_is_overruled(read: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVER_MODEL_URI", "/weights")
    warn_ignored_settings(read())
    assert "MLSERVER_MODEL_URI=/weights" in refusal(read(parameters={"uri": "/other"}))


def test_upper_case_is_heard(
    read: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MLServer, and so by us."""
    model = read({"Versions": ["1"]}, {"URI": "weights"})
    assert (model.versions, explicit_uri(model)) == (["1"], "weights")
    assert warnings(caplog, model) == []
    monkeypatch.setenv("MLSERVER_MODEL_URI", "/weights")
    assert "MLSERVER_MODEL_URI=/weights" in refusal(model)


def test_relative_paths_in_the_file(read: Settings, tmp_path: Path) -> None:
    """Are taken from the file."""
    model = read(parameters={"uri": "weights"}, extra={"cache_dir": "cache"})
    assert explicit_uri(model) == "weights", "which is looked up beside the file"
    assert settings_of(model).cache_dir == tmp_path / "models" / "cats" / "cache"


def test_relative_paths_in_the_environment(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are taken from where the server is started."""
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


def test_relative_paths_in_the_environment_that_are_not_there(
    read: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder beside the file is not taken in their place."""
    model = read()
    del model.parameters.extra["pretrained_model"], model.parameters.extra["fallback"]
    here, beside = tmp_path / "started here", tmp_path / "models" / "cats"
    (beside / "sample").mkdir()
    monkeypatch.setenv("TINYVIT_FALLBACK", "sample")
    for name in ("./sample", "file:sample"):
        monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", name)
        settings = settings_of(model)
        assert settings.pretrained_model == settings.fallback == str(here / "sample")
        with pytest.raises(CheckpointError, match=re.escape(str(here / "sample"))):
            find_checkpoint(None, settings.pretrained_model, settings.fallback, beside)
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "sample")
    with pytest.raises(SettingsError, match=re.escape(str(here))) as failure:
        settings_of(model)
    assert str(beside / "sample") in str(failure.value)


def test_paths_in_the_file_whose_names_are_in_upper_case(read: Settings, tmp_path: Path) -> None:
    """Are the file's nevertheless, also where there is such a folder in the working directory."""
    model = read(parameters={"extra": {"Pretrained_Model": "weights", "Cache_Dir": "cache"}})
    settings = settings_of(model)
    assert settings.pretrained_model == "weights", "which is looked up beside the file"
    assert settings.cache_dir == tmp_path / "models" / "cats" / "cache"


def test_names_on_the_hub_are_no_paths(read: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read()
    del model.parameters.extra["pretrained_model"]
    monkeypatch.setenv("TINYVIT_PRETRAINED_MODEL", "timm/resnet18.a1_in1k")
    assert settings_of(model).pretrained_model == "timm/resnet18.a1_in1k"


@pytest.mark.parametrize("workers", [0, 2])
def test_said_once_at_the_start(serve: Serve, tmp_path: Path, workers: int) -> None:
    folder = copy_of_tinyvit(tmp_path, workers=workers)
    content = json.loads((folder / "model-settings.json").read_text())
    (folder / "model-settings.json").write_text(json.dumps(content | {"max_batchsize": 8}))
    log = serve(folder=folder, timeout=400).output()
    assert log.count("'max_batchsize'") == 1
    assert "WARNING" in next(line for line in log.splitlines() if "max_batchsize" in line)


ENDS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "misspelt": ({"urri": "sample"}, {}, "'parameters.urri'"),
    "uri": ({"uri": "sample", "extra": {}}, {"TINYVIT_PRETRAINED_MODEL": "/one"}, "parameters.uri"),
    "fallback": ({}, {"TINYVIT_FALLBACK": "/one"}, "TINYVIT_FALLBACK=/one"),
    "elsewhere": ({"extra": {}}, {"TINYVIT_PRETRAINED_MODEL": "sample"}, "names no folder in"),
    "fallback elsewhere": ({"extra": {}}, {"TINYVIT_FALLBACK": "sample"}, "{cwd}/sample"),
    "case": ({}, {"tinyvit_engin": "torch"}, "'tinyvit_engin'"),
}


@pytest.mark.parametrize("how", ENDS)
def test_end_of_the_start(serve: Serve, tmp_path: Path, how: str) -> None:
    """In one sentence, without a traceback, where another model would be served."""
    parameters, variables, told = ENDS[how]
    folder = copy_of_tinyvit(tmp_path / "models", workers=0)
    content = json.loads((folder / "model-settings.json").read_text())
    content["parameters"] |= parameters
    (folder / "model-settings.json").write_text(json.dumps(content))
    server = serve(folder=folder, env=variables, ready=False)
    assert server.process.wait(120) == 1
    log = server.output()
    assert told.format(cwd=tmp_path) in log.splitlines()[-1]
    assert "Traceback" not in log
