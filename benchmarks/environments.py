"""One virtual environment for each peer, made from the lock in its folder when it is first needed.

    python -m benchmarks.environments [NAME ...]

So a peer gets the newest FastAPI, Starlette and uvloop, which MLServer's pins exclude.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.networks import ROOT

PEERS = ROOT / "benchmarks" / "peers"
INSTALL_TIMEOUT = 600
"""Maximum duration of one installation in seconds."""


def names() -> list[str]:
    """Return the peers that have an environment of their own."""
    return sorted(lock.parent.name for lock in PEERS.glob("*/requirements.lock"))


def folder(name: str) -> Path:
    """Return where the environment of this peer is, or will be."""
    return ROOT / f".venv-peer-{name}"


def ensure(name: str) -> None:
    """Make the environment unless it is there with the same lock.

    Raises CalledProcessError or TimeoutExpired.
    """
    environment, lock = folder(name), PEERS / name / "requirements.lock"
    complete, digest = environment / "complete", hashlib.sha256(lock.read_bytes()).hexdigest()
    if complete.exists() and complete.read_text() == digest:
        return
    print(f"Installing {name} into {environment.name} ...", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q"]
    for command in ([sys.executable, "-m", "venv", str(environment)], [*pip, "-r", str(lock)]):
        subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT)
    complete.write_text(digest)


if __name__ == "__main__":
    for peer in sys.argv[1:] or names():
        ensure(peer)
