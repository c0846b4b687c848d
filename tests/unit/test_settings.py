"""Settings from the file and the environment; unknown names are errors."""

from pathlib import Path
from typing import Any

import pytest
from mlserver.settings import ModelSettings

from mlserver_timm.errors import SettingsError
from mlserver_timm.settings import (
    BatcherLimits,
    RuntimeSettings,
    batcher_limits,
    keep_in_server_process,
    read_settings,
)

VALUES: dict[str, tuple[Any, str, Any]] = {
    "pretrained_model": ("timm/resnet50.a1_in1k", "timm/one", "timm/one"),
    "fallback": ("sample", "other", "other"),
    "engine": ("openvino", "torch", "torch"),
    "precision": ("bf16", "fp32", "fp32"),
    "num_threads": (3, "7", 7),
    "max_pixels": (1000, "2000", 2000),
    "max_decode_memory": (2**26, "134217728", 2**27),
    "max_queue": (5, "6", 6),
    "timeout": (1.5, "2.5", 2.5),
    "cache_dir": ("/tmp/one", "/tmp/other", Path("/tmp/other")),
}
"""For each setting: a value in the file, one in the environment, and that one parsed."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RuntimeSettings.model_fields:
        monkeypatch.delenv(f"TINYVIT_{name.upper()}", raising=False)


def test_every_setting_is_here() -> None:
    assert set(VALUES) == set(RuntimeSettings.model_fields)


def test_defaults() -> None:
    for extra in (None, {}):
        config = read_settings(extra)
        assert config.pretrained_model == "timm/tiny_vit_5m_224.dist_in22k"
        assert (config.engine, config.precision) == ("auto", "fp32")
        assert config.fallback is None and config.num_threads is None


@pytest.mark.parametrize("name", VALUES)
def test_the_file_overrides_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file, in_environment, parsed = VALUES[name]
    expected = type(parsed)(in_file)
    assert getattr(read_settings({name: in_file}), name) == expected
    monkeypatch.setenv(f"TINYVIT_{name.upper()}", in_environment)
    assert getattr(read_settings({}), name) == parsed
    assert getattr(read_settings({name: in_file}), name) == expected


@pytest.mark.parametrize(
    "extra", [{"presicion": "bf16"}, {"precision": "fp32", "threads": 1, "presicion": 2}]
)
def test_unknown_setting(extra: dict[str, Any]) -> None:
    """The error lists the unknown names and all valid ones."""
    with pytest.raises(SettingsError) as failure:
        read_settings(extra)
    sentence = str(failure.value)
    for name in set(extra) - set(VALUES):
        assert repr(name) in sentence
    for name in VALUES:
        assert name in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("variable", ["TINYVIT_PRESICION", "tinyvit_presicion"])
def test_unknown_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "bf16")
    with pytest.raises(SettingsError) as failure:
        read_settings({})
    assert repr(variable) in str(failure.value)
    for name in VALUES:
        assert f"TINYVIT_{name.upper()}" in str(failure.value)


def test_other_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_VIT", "1")
    monkeypatch.setenv("MLSERVER_MODEL_TINYVIT", "1")
    read_settings({})


WRONG = [
    ("engine", "onnx"),
    ("precision", "int8"),
    ("num_threads", 0),
    ("num_threads", 2000),
    ("num_threads", "many"),
    ("max_pixels", 0),
    ("max_decode_memory", 1000),
    ("max_queue", -1),
    ("timeout", 0),
    ("timeout", "soon"),
    ("pretrained_model", 5),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_invalid_values(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names the setting, from the file or the environment."""
    with pytest.raises(SettingsError) as failure:
        read_settings({name: value})
    assert f"'{name}'" in str(failure.value) and "\n" not in str(failure.value)
    if isinstance(value, int) and name == "pretrained_model":
        return  # in the environment everything is text
    monkeypatch.setenv(f"TINYVIT_{name.upper()}", str(value))
    with pytest.raises(SettingsError, match=f"'{name}'"):
        read_settings({})


@pytest.mark.parametrize(
    "name",
    [
        *("PORT", "SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"),
        *("CANARY_PORT", "CANARY_SERVICE_HOST", "CANARY_PORT_8080_TCP"),
    ],
)
def test_kubernetes_service_links_are_ignored(monkeypatch, name) -> None:
    monkeypatch.setenv(f"TINYVIT_{name}", "tcp://10.0.0.1:8080")
    assert read_settings({}) == RuntimeSettings()


def test_batcher_limits_are_the_models_own() -> None:
    """A batch is never larger than the queue. A negative `max_batch_time` disables MLServer's own
    batcher and means the same here."""
    model = ModelSettings(
        name="a", implementation="mlserver.MLModel", max_batch_size=8, max_batch_time=0.5
    )
    settings = RuntimeSettings(max_queue=3)
    assert batcher_limits(model, settings) == BatcherLimits(3, 0.5, 3)
    settings = RuntimeSettings(max_queue=9)
    model = keep_in_server_process(model)
    assert (model.max_batch_time, model.parallel_workers) == (-0.5, 0)
    assert batcher_limits(model, settings) == BatcherLimits(8, 0.5, 9)
    model.max_batch_size = 0
    assert batcher_limits(model, settings).max_batch_size == 1
