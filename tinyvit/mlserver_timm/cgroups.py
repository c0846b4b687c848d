"""The process's control groups (cgroup v1 or v2), which limit its memory and its CPU time."""

from pathlib import Path

CGROUPS, CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cgroup_folders(controller: str, cgroups: Path = CGROUPS, cgroup: Path = CGROUP) -> list[Path]:
    """Return the cgroup folders of this process and of all parent groups, whose limits apply too.

    `controller` selects a v1 hierarchy, such as "memory"; cgroup v2 has one for all controllers.
    """
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:  # macOS
        return []
    folders: list[Path] = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "" or controller in controllers.split(","):
            root = cgroups / controller if controllers else cgroups
            folder = root / path.lstrip("/")
            # A container often sees its own group as the root, whatever the path says.
            folders += [each for each in (folder, *folder.parents) if each.is_relative_to(root)]
    return folders


def read_limits(file: Path) -> list[int]:
    """Return the numbers in a limit's file; nothing for "max" or a missing file."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
