"""Print which version of each model answers (README.md, "Two models, two versions")."""

import sys
import time

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest
from PIL import Image

URL = "http://localhost:8080/v2/models"
MODELS = ("lab", "tinyvit/versions/v1", "tinyvit/versions/v2", "tinyvit")
CAT = np.asarray(Image.open("imgs/cat.jpg").convert("RGB"))
REQUEST = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", CAT)]).model_dump_json()

try:
    for model in MODELS:
        for _ in range(60):
            ready = requests.get(f"{URL}/{model}/ready", timeout=60)
            if ready.ok:
                break
            time.sleep(1)
        else:
            sys.exit(f"The model {model} is not ready: {ready.status_code} {ready.text}")
        answer = requests.post(f"{URL}/{model}/infer", data=REQUEST, timeout=60).json()
        print(model, answer.get("model_version"), answer["outputs"][0]["data"][0])
except requests.RequestException as error:
    sys.exit(f"No answer from {URL} ({type(error).__name__}): start the server first.")
