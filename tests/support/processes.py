"""What the kernel says of a process."""

import os
from pathlib import Path

GONE = ["Z", *["0"] * 49]
"""Fields of a process that does not exist any more; a zombie has the same state."""


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return GONE


def is_running(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    return stat_fields(pid)[0] != "Z"


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, with its ended children."""
    return sum(map(int, stat_fields(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def page_faults(pid: int) -> int:
    """Return how often the process got a page of memory from the system so far."""
    return int(stat_fields(pid)[7])


def children_of(pid: int) -> list[int]:
    """Return the running processes that a process has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children if is_running(int(child))]
