"""The peers' environments: one each, made from the lock beside the peer when it is first needed.

    python environments.py [NAME ...]

Apart, a peer gets the newest FastAPI, Starlette and uvloop, which MLServer would hold back, and
changes nothing for MLServer.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
PATIENCE = 600
"""Seconds that one installation may take."""


class NotInstalled(RuntimeError):
    """An environment could not be made; the message says why."""


def names() -> list[str]:
    """Peers that have an environment of their own."""
    return sorted(lock.parent.name for lock in PEERS.glob("*/requirements.lock"))


def folder(name: str) -> Path:
    """Where the environment of this peer is, or will be."""
    return ROOT / f".venv-peer-{name}"


def ensure(name: str) -> Path:
    """The environment's folder, made anew where its lock has changed; raises NotInstalled."""
    environment, lock = folder(name), PEERS / name / "requirements.lock"
    complete, digest = environment / "complete", hashlib.sha256(lock.read_bytes()).hexdigest()
    if complete.exists() and complete.read_text() == digest:
        return environment
    print(f"Installing {name} into {environment.name} ...", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(environment / "bin" / "python"), "-m", "pip"]
    _run([*pip, "install", "-q", "--disable-pip-version-check", "-r", str(lock)])
    complete.write_text(digest)
    return environment


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{' '.join(command)} took over {PATIENCE} seconds.") from None
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    for peer in sys.argv[1:] or names():
        ensure(peer)
