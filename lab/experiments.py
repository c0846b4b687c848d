"""Break a runtime: start it, send what users send, print what comes back, stop it.

python lab/experiments.py {floats,images,probe,crowd} [FOLDER]

FOLDER is the model folder to test, relative to the repository, such as tinyvit (default:
lab/2-top-5).
"""

# ruff: noqa: E402  # signals are handled before the slow imports

import signal
import sys


def end(number: int, _: object) -> None:
    """End the program without a traceback; `serving` stops the server on the way out."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from client.local import ServerFailed, serving

CAT = np.asarray(Image.open(ROOT / "imgs" / "cat.jpg").convert("RGB"))
VARIABLES = {
    "probe": {"MLSERVER_PARALLEL_WORKERS": "0"},
    "crowd": {"MLSERVER_MODEL_MAX_BATCH_SIZE": "8", "MLSERVER_MODEL_MAX_BATCH_TIME": "0.1"},
}
"""Environment variables for each experiment. The folder's settings files override them."""


def ask(url: str, pixels: np.ndarray) -> str:
    """Return the status, and the labels or the error."""
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", pixels)])
    response = requests.post(
        f"{url}/v2/models/tinyvit/infer", json=request.model_dump(), timeout=60
    )
    if response.ok:
        return f"{response.status_code}  {response.json()['outputs'][0]['data']}"
    is_json = response.headers["Content-Type"] == "application/json"
    return f"{response.status_code}  {response.json()['error'] if is_json else response.text}"


def floats(url: str) -> None:
    """Send the cat with pixels from 0 to 1, as many programs store them."""
    print(ask(url, CAT / 255))


def images(url: str) -> None:
    """Send two cats in one request, `[N,H,W,C]`."""
    print(ask(url, np.stack([CAT, CAT])))


def probe(url: str) -> None:
    """Measure how long the liveness probe waits while eight clients send images."""
    done, small = Event(), np.asarray(Image.fromarray(CAT).resize((224, 224)))

    def client(_: int) -> None:
        while not done.is_set():
            ask(url, small)

    waits = []
    with ThreadPoolExecutor(8) as pool:
        try:
            pool.map(client, range(8))
            ask(url, small)  # by now all eight clients are sending
            end = time.monotonic() + 5
            while time.monotonic() < end:
                started = time.monotonic()
                requests.get(f"{url}/v2/health/live", timeout=60)
                waits.append(1000 * (time.monotonic() - started))
                time.sleep(0.05)
        finally:
            done.set()
    print(f"the probe waits {statistics.median(waits):.0f} ms, at most {max(waits):.0f} ms")
    print("(the times vary with the machine)")


def crowd(url: str) -> None:
    """Send the cat from eight clients at once, with MLServer's adaptive batching on."""
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: ask(url, CAT), range(8)):
            print(answer)
    print("(which clients get labels varies from run to run)")


EXPERIMENTS = {experiment.__name__: experiment for experiment in (floats, images, probe, crowd)}


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in EXPERIMENTS:
        sys.exit(__doc__)
    folder = ROOT / (sys.argv[2] if len(sys.argv) == 3 else "lab/2-top-5")
    if not (folder / "model-settings.json").is_file():
        sys.exit(f"{folder} is not a model folder: it contains no model-settings.json.")
    variables = VARIABLES.get(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        try:
            with serving(folder, env=variables, log=Path(work) / "log", cwd=work) as server:
                server.wait(model="tinyvit")
                EXPERIMENTS[sys.argv[1]](server.url)
        except ServerFailed as error:
            sys.exit(f"The server did not start: {error}")


if __name__ == "__main__":
    main()
