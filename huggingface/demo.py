"""The cat, named by MLServer's Hugging Face runtime: starts it, asks it once, stops it."""

import base64
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from client.local import ServerFailed, start, unbroken  # noqa: E402

INFER = "/v2/models/huggingface/infer"
PICTURE = ROOT / "imgs" / "cat.jpg"


def request_for(*pictures: bytes) -> dict[str, Any]:
    """The runtime's request for image files: base64 text, `pillow_image` says to open it."""
    tensor = {
        "name": "inputs",
        "datatype": "BYTES",
        "shape": [len(pictures)],
        "data": [base64.b64encode(picture).decode() for picture in pictures],
        "parameters": {"content_type": "pillow_image"},
    }
    return {"inputs": [tensor]}


def rankings_in(answer: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """For each picture `[{"label": ..., "score": ...}, ...]`, best first."""
    return [json.loads(ranking) for ranking in answer["outputs"][0]["data"]]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs
    with tempfile.TemporaryDirectory() as folder:
        return demonstrate(Path(folder))


def demonstrate(work: Path) -> int:
    """Serves, asks for the cat, stops; returns the exit status. The log goes to `work`."""
    print("Starting: mlserver start huggingface", flush=True)
    variables = {"HF_HUB_OFFLINE": "1"}  # all that is served is here
    server = None
    try:
        with unbroken():
            server = start(ROOT / "huggingface", env=variables, log=work / "log", cwd=work)
        # The server alone calls itself ready before it knows of the model.
        server.wait(timeout=600, model="huggingface")
        body = request_for(PICTURE.read_bytes())
        answer = requests.post(server.url + INFER, json=body, timeout=60)
        answer.raise_for_status()
        print(PICTURE.relative_to(ROOT))
        for named in rankings_in(answer.json())[0]:
            print(f"  {named['score']:6.1%}  {named['label']}")
        server.stop()
        print("The server has stopped.")
        return 0
    except (ServerFailed, requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the server is stopped.", file=sys.stderr)
        return 130
    finally:
        if server:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
