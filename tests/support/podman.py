"""Podman with all of its data in one folder, for pods without a network."""

import os
from pathlib import Path
from typing import Any

from tests.support.docker_engine import Engine
from tests.support.programs import output_of

CONFIGURATION = """[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/libexec/podman", "/usr/lib/podman", "/usr/bin"]
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""


class Podman:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._command = ["podman", "--storage-driver", "overlay"]
        self._command += ["--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def __call__(self, *words: Any) -> str:
        """Run `podman ...`, which must succeed, and return its output."""
        return output_of(*self._command, *words, env=self._environment, timeout=None).strip()

    def take_from(self, engine: Engine, *images: str) -> None:
        archive = self._folder / "images.tar"
        engine("save", *images, "-o", archive)
        self("load", "-q", "-i", archive)
        archive.unlink()

    def close(self) -> None:
        """End the pods and unmount their volumes, so that the folder can be removed."""
        self("pod", "rm", "-fa")
        self("system", "reset", "-f")
