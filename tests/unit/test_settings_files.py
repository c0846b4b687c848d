"""Settings files as editors save them, and variables that they override."""

import codecs
import json
import logging
from pathlib import Path

import pytest
from mlserver.settings import ModelSettings

from mlserver_timm.errors import SettingsError
from mlserver_timm.settings import read_model_settings
from mlserver_timm.settings_check import warn_ignored_settings, warn_once

VALID = '{\n  "name": "cats",\n  "implementation": "mlserver_timm.TimmClassifier"\n}\n'

INVALID: dict[str, tuple[bytes, int, str]] = {
    "byte order mark": (codecs.BOM_UTF8 + VALID.encode(), 1, "BOM"),
    "UTF-16": (VALID.encode("utf-16"), 1, "save the file as UTF-8"),
    "trailing comma": (VALID.replace('er"\n', 'er",\n').encode(), 4, "property name"),
    "comment": (VALID.replace("{\n", "{\n  // mine\n", 1).encode(), 2, "property name"),
    "empty": (b"", 1, "Expecting value"),
    "list": (b"[]", 1, "expected a JSON object"),
    "no implementation": (b'{"name": "cats"}', 1, "'implementation': field required"),
    "wrong type": (VALID.replace('"cats"', "[5]").encode(), 2, "'name': "),
    "misspelt class": (VALID.replace("Classifier", "Clasifier").encode(), 3, "TimmClasifier"),
    "misspelt package": (VALID.replace("mlserver_", "mlsrver_").encode(), 3, "'mlsrver_timm'"),
    "misspelt module": (VALID.replace("timm.T", "timm.no.T").encode(), 3, "mlserver_timm.no"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_file(tmp_path: Path, kind: str) -> None:
    content, line, reason = INVALID[kind]
    path = tmp_path / "model-settings.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        read_model_settings(path)
    message = str(error.value)
    assert message.startswith(f"{path} cannot be read: line {line}") and reason in message
    assert "\n" not in message


def test_a_file_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "model-settings.json"
    path.write_text("[" * 100_000)
    with pytest.raises(SettingsError, match=f"{path} cannot be read: it is nested too deeply"):
        read_model_settings(path)


def test_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "model-settings.json"
    path.write_text(VALID)
    assert read_model_settings(path).name == "cats"


@pytest.mark.parametrize("code", ["import no_such_package", "1 / 0", "class Model:"])
def test_errors_of_the_models_own_code_are_left_to_the_load(tmp_path: Path, code: str) -> None:
    """Their tracebacks say where they come from."""
    (tmp_path / "own_code.py").write_text(code)
    path = tmp_path / "model-settings.json"
    path.write_text('{"name": "own", "implementation": "own_code.Model"}')
    assert read_model_settings(path).name == "own"


@pytest.fixture
def model(tmp_path: Path) -> ModelSettings:
    """A model with a settings.json next to it."""
    warn_once.cache_clear()
    server = {"debug": False, "parallel_workers": 0}
    (tmp_path / "settings.json").write_text(json.dumps(server))
    content = {"name": "cats", "implementation": "a.B", "max_batch_size": 4, "max_batch_time": 0}
    (tmp_path / "model-settings.json").write_text(json.dumps(content))
    return ModelSettings.parse_file(str(tmp_path / "model-settings.json"))


OVERRIDDEN = {
    "MLSERVER_DEBUG": "1",
    "MLSERVER_PARALLEL_WORKERS": "2",
    "MLSERVER_MODEL_MAX_BATCH_SIZE": "8",
    "MLSERVER_MODEL_NAME": "dogs",
}
SAME = {
    "MLSERVER_DEBUG": "0",
    "MLSERVER_PARALLEL_WORKERS": "0",
    "MLSERVER_MODEL_MAX_BATCH_SIZE": "4",
    "MLSERVER_MODEL_MAX_BATCH_TIME": "0.0",
    "MLSERVER_MODEL_NAME": "cats",
    "MLSERVER_HTTP_PORT": "9000",
}


def test_overridden_variables(
    model: ModelSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning each, however many models there are."""
    for name, value in OVERRIDDEN.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
        for _ in range(2):
            warn_ignored_settings(model)
    assert len(caplog.messages) == len(OVERRIDDEN)
    for name, value in OVERRIDDEN.items():
        (message,) = (each for each in caplog.messages if f"{name}={value} is ignored" in each)
        assert "settings.json" in message


def test_variables_with_the_files_value(
    model: ModelSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SAME.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
        warn_ignored_settings(model)
    assert caplog.messages == []
