"""Start a server, classify one image and stop the server: the program of `make demo`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.local import LocalServer, ServerFailed, serving

ROOT = Path(__file__).resolve().parents[1]


def demonstrate(model: str, ask: Callable[[LocalServer], int], **env: str) -> int:
    """Serve the folder of the model, return the exit status of `ask`, and stop the server."""
    for number in (signal.SIGINT, signal.SIGTERM):  # so that the server is stopped, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    print(f"Starting: mlserver start {model}", flush=True)
    started = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory() as work,
            serving(ROOT / model, timeout=600, env=env, log=Path(work) / "log") as server,
        ):
            server.wait(timeout=600, model=model)
            print(f"Ready after {time.monotonic() - started:.0f} s on {server.url}\n", flush=True)
            status = ask(server)
    except ServerFailed as error:
        sys.exit(f"The server did not start: {error}")
    print("\nThe server has stopped. `make serve` starts one that stays.")
    return status


def classify(server: LocalServer) -> int:
    """Classify the image that the command line names."""
    image = sys.argv[1] if len(sys.argv) > 1 else "imgs/cat.jpg"
    command = [sys.executable, "client/classify.py", "--encoding", "image", "--url", server.url]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.run([*command, image], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(demonstrate("tinyvit", classify))
