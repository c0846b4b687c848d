"""The number of CPU cores that this process may use."""

import os
from pathlib import Path

from mlserver_timm.cgroups import CGROUP, CGROUPS, cgroup_folders, read_limits


def available_cores() -> int:
    """Return the number of cores: the process's affinity, limited by its cgroups' CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_quota() or cores or 1))


def _cgroup_quota(cgroups: Path = CGROUPS, cgroup: Path = CGROUP) -> int | None:
    """Return the lowest CPU quota in cores, rounded up, or None without a quota."""
    quotas = []
    for folder in cgroup_folders("cpu", cgroups, cgroup):
        limits = read_limits(folder / "cpu.max") or (  # the quota and its period
            read_limits(folder / "cpu.cfs_quota_us") + read_limits(folder / "cpu.cfs_period_us")
        )
        if len(limits) == 2 and min(limits) > 0:  # without a quota v1 has -1
            quotas.append(-(-limits[0] // limits[1]))
    return min(quotas, default=None)
