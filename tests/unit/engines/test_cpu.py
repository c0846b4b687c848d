"""The number of cores that a process may use."""

import os
import sys
from pathlib import Path

import pytest

from mlserver_timm.inference.engines import cpu
from mlserver_timm.inference.engines.cpu import available_cores
from tests.support.paths import ROOT
from tests.support.programs import output_of

V2, V1 = "0::{}\n", "5:cpu,cpuacct:{}\n4:memory:/\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        (V2.format("/"), {"cpu.max": "max 100000\n"}, None),
        (V2.format("/"), {"cpu.max": "200000 100000\n"}, 2),
        (V2.format("/"), {"cpu.max": "150000 100000\n"}, 2),
        (V2.format("/"), {"cpu.max": "10000 100000\n"}, 1),
        (V2.format("/"), {"cpu.max": "nonsense"}, None),
        (V2.format("/"), {}, None),
        (V2.format("/kubepods/pod1"), {"cpu.max": "300000 100000\n"}, 3),
        (  # a service of systemd, within a slice
            V2.format("/a.slice/b.service"),
            {"a.slice/cpu.max": "max 100000", "a.slice/b.service/cpu.max": "200000 100000"},
            2,
        ),
        (V2.format("/a/b"), {"a/cpu.max": "100000 100000", "a/b/cpu.max": "200000 100000"}, 1),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "350000\n"}, None),
        (
            V1.format("/a"),
            {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2,
        ),
    ],
)
def test_cgroup_quota(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: int | None
) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    for name, content in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cpu._cgroup_quota(tmp_path / "sys", tmp_path / "cgroup") == cores


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
    assert output_of(sys.executable, "-c", code).strip() == "1"
