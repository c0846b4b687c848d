"""What `make demo` runs: a server, the client on a picture, and nothing left running."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.local import ServerFailed, start, unbroken

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=Path("imgs/cat.jpg"))
    parser.add_argument("--folder", type=Path, default=ROOT / "tinyvit", help="model folder")
    parser.add_argument("--model", default="tinyvit", help="the model's name")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the client prints too
    with tempfile.TemporaryDirectory() as folder:
        return demonstrate(options, Path(folder) / "server.log")


def demonstrate(options: argparse.Namespace, log: Path) -> int:
    """Serves the folder, asks for the picture, stops; returns the exit status."""
    print(f"Starting: mlserver start {options.folder.name}")
    begun = time.monotonic()
    server = None
    try:
        with unbroken():
            server = start(options.folder, log=log)
        server.wait(timeout=600)
        print(f"Ready after {time.monotonic() - begun:.0f} s on {server.url}\n")
        command = [sys.executable, "client/classify.py", "--encoding", "image"]
        command += ["--url", server.url, "--model", options.model, str(options.picture)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        server.stop()
        print("\nThe server has stopped. It stays with: make serve")
        return status
    except ServerFailed as error:
        print(f"The server could not be started: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the server is stopped.", file=sys.stderr)
        return 130
    finally:
        if server:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
