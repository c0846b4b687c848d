"""Take away from this package what only Linux has, as on macOS.

Python imports this module at its start if the folder is on PYTHONPATH, also in servers and decoders
(`make test WITHOUT_LINUX=1`). Gone are memfd_create, CPU affinity, prctl, malloc_trim, limits of
address space, fork in the decoders' supervisor, and the files of /proc and /sys. Tests and other
packages still read these files.
"""

import errno
import os
import resource
import sys
from typing import Any

IS_DECODER = "mlserver_timm.images.worker" in sys.orig_argv
PACKAGE = "mlserver_timm"


def take_away(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail as the call fails on macOS (an audit hook, see sys.addaudithook)."""
    if event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, str) and path.startswith(("/proc/", "/sys/")) and _is_package_calling():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    elif event == "ctypes.dlsym" and arguments[1] in ("prctl", "malloc_trim"):
        raise AttributeError(arguments[1])
    elif event == "resource.setrlimit" and IS_DECODER and arguments[0] == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")


def _is_package_calling() -> bool:
    """Return whether this package reads the file, itself or through pathlib."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("pathlib"):
        frame = frame.f_back
    return IS_DECODER or frame.f_globals.get("__name__", "").startswith(PACKAGE)


for name in ("memfd_create", "sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
if IS_DECODER:
    sys.platform = "darwin"
sys.addaudithook(take_away)
