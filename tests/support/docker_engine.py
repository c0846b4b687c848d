"""A Docker Engine of one's own, and base images that are made here: none can be pulled.

The daemon keeps to one folder and changes nothing of the machine's network, so that containers
have either the machine's own network or none.
"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.programs import output_of, run_program

DOCKER = "/usr/bin/docker"  # Debian's, of the daemon's version; there may be another on the PATH
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
UNNEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
)


class Engine:
    """A running daemon; `folder` holds all of its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "sock"
        self._log = folder / "log"
        command: list[Any] = ["setpriv", "--pdeathsig", "TERM"]  # it does not outlive a killed test
        command += ["dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec"]
        command += ["-p", folder / "pid", "-H", f"unix://{self._socket}"]
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += ["--ip-forward=false"]  # else it turns on the machine's net.ipv4.ip_forward
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": f"unix://{self._socket}", "DOCKER_BUILDKIT": "1"}

    def wait(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.attempt("info")[0] == 0:
                return
            time.sleep(0.5)
        raise RuntimeError(
            f"no Docker daemon can be started here:\n{self._log.read_text()[-3000:]}"
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        # The namespace of `--network none`, which the daemon leaves mounted.
        namespaces = self._folder / "exec" / "netns"
        for each in namespaces.glob("*"):
            subprocess.run(["umount", each], check=False, capture_output=True)

    def __call__(self, *words: Any, **options: Any) -> str:
        """Run `docker ...`, which must succeed, and return its output."""
        options = {"env": self.environment, "timeout": None, **options}
        return output_of(DOCKER, *words, **options).strip()

    def attempt(self, *words: Any) -> tuple[int, str]:
        """Run `docker ...` that may fail; return the exit status and the output."""
        done = run_program(DOCKER, *words, env=self.environment, timeout=None)
        return done.status, done.output + done.errors

    def build(self, context: Path, dockerfile: Path, tag: str, *options: str) -> None:
        self("build", "--network", "host", *options, "-f", dockerfile, "-t", tag, context)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Engine]:
    for name in ("dockerd", "debootstrap", DOCKER):
        if not shutil.which(name):
            raise RuntimeError(f"{name} is missing: apt-get install docker.io debootstrap")
    engine = Engine(folder)
    try:
        engine.wait()
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder, ignore_errors=True)


def make_base(engine: Engine, folder: Path, tag: str) -> None:
    """Debian with Python and pip, as small as `python:...-slim`, under that image's name."""
    root = folder / "root"
    command = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}")
    output_of(*command, "bookworm", root, mirror(), timeout=None)
    for name in UNNEEDED:
        shutil.rmtree(root / name)
        (root / name).mkdir()
    next(root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED")).unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        engine("import", "-", tag, stdin=tar.stdout)
    shutil.rmtree(root)


def mirror() -> str:
    """Where this machine's Debian packages come from."""
    columns = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    listed = output_of("apt-get", "indextargets", "--format", columns)
    found = re.search(r"^(\S+) bookworm main$", listed, re.MULTILINE)
    assert found, f"no Debian mirror is configured:\n{listed}"
    return found[1]


def pip_secrets(folder: Path) -> list[str]:
    """Options of `docker build` that give pip inside the index and certificates of pip here."""
    listed = output_of(sys.executable, "-m", "pip", "config", "list")
    values: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        values[name.removeprefix(":env:.").rpartition(".")[2]] = ast.literal_eval(value)
    options = []
    if certificates := values.get("cert"):
        options += ["--secret", f"id=ca,src={certificates}"]
        values["cert"] = "/run/secrets/ca"
    network = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host", "default-timeout")
    kept = {name: remote(values[name]) for name in network if name in values}
    lines = [f"{name} = {value}" for name, value in kept.items() if value]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    return [*options, "--secret", f"id=pip,src={folder / 'pip.conf'}"]


def remote(value: str) -> str:
    """Without indexes on this machine's disk, which no container sees."""
    return " ".join(word for word in value.split() if not word.startswith("file:"))
