"""Breaks a runtime: starts it, sends what people send, prints what comes back, stops it.

python lab/experiments.py {floats,pictures,probe,crowd} [FOLDER]

FOLDER is lab/2-top-5, or what you would rather break, such as tinyvit.
"""

import signal
import statistics
import sys
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

from client.local import serving  # noqa: E402

CAT = np.asarray(Image.open(ROOT / "imgs" / "cat.jpg").convert("RGB"))
VARIABLES = {
    "probe": {"MLSERVER_PARALLEL_WORKERS": "0"},
    "crowd": {"MLSERVER_MODEL_MAX_BATCH_SIZE": "8", "MLSERVER_MODEL_MAX_BATCH_TIME": "0.1"},
}
"""Settings of an experiment; what a folder's own files say wins over them."""


def ask(url: str, pixels: np.ndarray) -> str:
    """The status, and the labels or the sentence that came back."""
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", pixels)])
    answer = requests.post(f"{url}/v2/models/tinyvit/infer", json=request.model_dump(), timeout=60)
    content = answer.json()
    found = content["outputs"][0]["data"] if answer.ok else content["error"]
    return f"{answer.status_code}  {found}"


def floats(url: str) -> None:
    """The cat with its pixels from 0 to 1, as many programs hold them."""
    print(ask(url, CAT / 255))


def pictures(url: str) -> None:
    """Two cats in one request, `[N,H,W,C]`."""
    print(ask(url, np.stack([CAT, CAT])))


def probe(url: str) -> None:
    """How long the liveness probe waits for its answer while eight clients ask."""
    enough, small = Event(), np.asarray(Image.fromarray(CAT).resize((224, 224)))

    def client(_: int) -> None:
        while not enough.is_set():
            ask(url, small)

    with ThreadPoolExecutor(8) as pool:
        pool.map(client, range(8))
        ask(url, small)  # so that all of them are at it
        waits, end = [], time.monotonic() + 5
        while time.monotonic() < end:
            begun = time.monotonic()
            requests.get(f"{url}/v2/health/live", timeout=60)
            waits.append(1000 * (time.monotonic() - begun))
            time.sleep(0.05)
        enough.set()
    print(f"the probe waits {statistics.median(waits):.0f} ms, at most {max(waits):.0f} ms")


def crowd(url: str) -> None:
    """Eight clients at once, with MLServer's adaptive batching on: the labels each gets."""
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: ask(url, CAT), range(8)):
            print(answer)


EXPERIMENTS = {e.__name__: e for e in (floats, pictures, probe, crowd)}


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in EXPERIMENTS:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    folder = ROOT / (sys.argv[2] if len(sys.argv) == 3 else "lab/2-top-5")
    with tempfile.TemporaryDirectory() as work:
        variables = VARIABLES.get(sys.argv[1])
        with serving(folder, env=variables, log=Path(work) / "log", cwd=work) as server:
            server.wait(model="tinyvit")
            EXPERIMENTS[sys.argv[1]](server.url)


if __name__ == "__main__":
    main()
