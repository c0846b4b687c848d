"""Send the cat from eight clients for ten seconds, and count the answers."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

URL, CLIENTS, SECONDS = "http://localhost:8080/v2/models/tinyvit/infer", 8, 10
IMAGE = Path(__file__).resolve().parents[1] / "imgs" / "cat.jpg"
CAT = np.asarray(Image.open(IMAGE).convert("RGB").resize((224, 224)))
REQUEST = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", CAT)]).model_dump_json()


def client(_: int) -> tuple[int, int]:
    """Send one request after the other; return how many answers came, and how many had labels."""
    answers = labelled = 0
    while time.monotonic() < end:
        response = requests.post(URL, data=REQUEST, timeout=60)
        answers += 1
        labelled += response.ok and bool(response.json()["outputs"][0]["data"])
    return answers, labelled


end = time.monotonic() + SECONDS
try:
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers, labelled = map(sum, zip(*pool.map(client, range(CLIENTS)), strict=True))
except requests.RequestException as error:
    sys.exit(f"No answer from {URL} ({type(error).__name__}): start the server first.")
print(f"{answers / SECONDS:.1f} answers a second, {labelled / SECONDS:.1f} of them with labels")
