"""Memory of the process and of its container."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mlserver_timm.cgroups import CGROUP, CGROUPS, cgroup_folders, read_limits

LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")
"""Files with a cgroup's memory limit in bytes: of v2, and of v1."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of mallopt(3)."""

MALLOC_OPTIONS = {M_TRIM_THRESHOLD: 8 * 2**20, M_MMAP_THRESHOLD: 4 * 2**20, M_ARENA_MAX: 2}
"""By default, glibc may return the memory of a body after each request. Pixels of 2 MB as JSON then
cost up to 1,800 page faults, a quarter of the time. Fewer arenas save 20 MiB."""


def container_limit(cgroups: Path = CGROUPS, cgroup: Path = CGROUP) -> int:
    """Return the bytes of memory that the process's cgroup (v1 or v2) may use; sys.maxsize if
    there is no limit."""
    files = [
        folder / name
        for folder in cgroup_folders("memory", cgroups, cgroup)
        for name in LIMIT_FILES
    ]
    return min((limit for file in files for limit in read_limits(file)), default=sys.maxsize)


def share(part: float, limit: int) -> int:
    """Return a part of the container's memory in bytes, but at most `limit`."""
    return min(limit, int(part * container_limit()))


def keep_freed_memory() -> None:
    """Let the allocator keep freed memory for the next request (glibc only), unless an operator has
    configured it by variables."""
    mallopt = _glibc("mallopt")
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def return_to_system() -> None:
    """Give freed memory back to the system, which takes milliseconds (glibc only)."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
