"""Print which version of each model answers (README.md, "Two models, two versions")."""

import sys
import time
from pathlib import Path

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

URL = "http://localhost:8080/v2/models"
MODELS = ("lab", "tinyvit/versions/v1", "tinyvit/versions/v2", "tinyvit")
IMAGE = Path(__file__).resolve().parents[1] / "imgs" / "cat.jpg"
CAT = np.asarray(Image.open(IMAGE).convert("RGB"))
REQUEST = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", CAT)]).model_dump_json()


def is_ready(model: str) -> bool:
    """Return whether a model answers; the server may still be starting."""
    try:
        return requests.get(f"{URL}/{model}/ready", timeout=60).ok
    except requests.ConnectionError:
        return False


try:
    for model in MODELS:
        for attempt in range(60):
            if is_ready(model):
                break
            if attempt == 3:
                print(f"Waiting for {URL}/{model} ...", file=sys.stderr)
            time.sleep(1)
        else:
            sys.exit(f"The model {model} at {URL} was not ready within a minute.")
        answer = requests.post(f"{URL}/{model}/infer", data=REQUEST, timeout=60).json()
        print(model, answer.get("model_version"), answer["outputs"][0]["data"][0])
except requests.RequestException as error:
    sys.exit(f"No answer from {URL} ({type(error).__name__}): start the server first.")
