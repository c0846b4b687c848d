"""Limits of memory follow the container."""

import os
import sys
from pathlib import Path

import pytest

from mlserver_timm import memory
from mlserver_timm.settings import MIN_DECODE_MEMORY, RuntimeSettings

MEBIBYTE = 2**20

V2, V1 = "0::{}\n", "5:cpu:/\n4:memory:{}\n0::/\n"
LAYOUTS: dict[str, tuple[str, dict[str, str], int]] = {
    "v2 container": (V2.format("/"), {"memory.max": "512"}, 512),
    "v2 without a limit": (V2.format("/"), {"memory.max": "max\n"}, sys.maxsize),
    "v1 service": (
        V1.format("/a"),
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/a/memory.limit_in_bytes": "7",
        },
        7,
    ),
    "nothing mounted": (V2.format("/"), {}, sys.maxsize),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_container_limit(tmp_path: Path, layout: str) -> None:
    cgroup, files, limit = LAYOUTS[layout]
    (tmp_path / "cgroup").write_text(cgroup)
    for name, content in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert memory.container_limit(tmp_path / "sys", tmp_path / "cgroup") == limit


def test_system_without_cgroups(tmp_path: Path) -> None:
    assert memory.container_limit(tmp_path, tmp_path / "missing") == sys.maxsize


@pytest.mark.parametrize(
    ("limit", "decode", "held"), [(384, 96, 48), (1024, 256, 128), (4096, 384, 128), (64, 32, 8)]
)
def test_shares(monkeypatch: pytest.MonkeyPatch, limit: int, decode: int, held: int) -> None:
    monkeypatch.setattr(memory, "container_limit", lambda: limit * MEBIBYTE)
    assert RuntimeSettings().decode_memory(2) == decode * MEBIBYTE
    assert memory.share(1 / 8, 128 * MEBIBYTE) == held * MEBIBYTE
    assert RuntimeSettings().decode_memory(2) >= MIN_DECODE_MEMORY


def test_a_setting_overrides_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "container_limit", lambda: 512 * MEBIBYTE)
    assert RuntimeSettings(max_decode_memory=300 * MEBIBYTE).decode_memory(2) == 300 * MEBIBYTE


@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "1"}])
def test_an_operators_variables_configure_malloc(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options: dict[int, int] = {}
    monkeypatch.setattr(memory, "_glibc", lambda name: options.__setitem__)
    memory.keep_freed_memory()
    assert options == ({} if variables else memory.MALLOC_OPTIONS)
