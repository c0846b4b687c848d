"""The number of cores that a process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlserver_timm.inference.engines import cpu
from mlserver_timm.inference.engines.cpu import available_cores
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "350000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "350000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu._cgroup_quota(tmp_path) == cores


def test_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of affinity and quota, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for quota, cores in ((None, affinity), (1, 1), (1000, affinity)):
        monkeypatch.setattr(cpu, "_cgroup_quota", lambda quota=quota: quota)
        assert available_cores() == cores


@pytest.mark.linux
def test_affinity_limits_the_cores() -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT / 'tinyvit')!r}); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from mlserver_timm.inference.engines.cpu import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
