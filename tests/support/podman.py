"""Podman with all of its data in one folder, for pods without a network."""

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.docker_engine import DOCKER, Engine

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
        """Run `podman ...` and return its output; raises RuntimeError if it fails."""
        done = subprocess.run(
            [*self._command, *map(str, words)],
            env=self._environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"podman {words[0]} failed:\n{done.stdout + done.stderr}")
        return done.stdout.strip()

    def take_from(self, engine: Engine, *images: str) -> None:
        archive = self._folder / "images.tar"
        subprocess.run([DOCKER, "save", *images, "-o", archive], env=engine.environment, check=True)
        self("load", "-q", "-i", archive)
        archive.unlink()

    def close(self) -> None:
        """End the pods and unmount their volumes, so that the folder can be removed."""
        self("pod", "rm", "-fa")
        self("system", "reset", "-f")
