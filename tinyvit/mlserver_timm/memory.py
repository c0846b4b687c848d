"""Memory of the process and of its container."""

import ctypes
import sys
from pathlib import Path

CGROUPS, CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""By controller; cgroup v2 has none, and v1 a folder for each."""


def container_limit(cgroups: Path = CGROUPS, cgroup: Path = CGROUP) -> int:
    """Return the bytes of memory that the process's cgroup (v1 or v2) may use; sys.maxsize if
    there is no limit."""
    limits = [sys.maxsize]
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:  # macOS
        return sys.maxsize
    for _, controller, path in (line.split(":", 2) for line in lines):
        if controller in LIMIT_FILES:
            root = cgroups / controller
            folder = root / path.lstrip("/")
            # A container often sees its own cgroup as the root, whatever the path says.
            for each in (folder, *folder.parents):
                if each.is_relative_to(root):
                    limits += _numbers(each / LIMIT_FILES[controller])
    return min(limits)


def share(part: float, most: int) -> int:
    """Return a part of the container's memory in bytes, but not more than `most`."""
    return min(most, int(part * container_limit()))


def _numbers(file: Path) -> list[int]:
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):  # "max"
        return []


def return_to_system() -> None:
    """Give freed memory back to the system, which takes milliseconds (glibc only)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
