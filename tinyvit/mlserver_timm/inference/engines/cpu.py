"""The number of CPU cores that this process may use."""

import os
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores: the process's affinity, limited by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_quota() or cores or 1))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the CPU quota in cores, rounded up (cgroup v2 or v1), or None without a quota."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return None if quota == "max" or int(quota) < 1 else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None
