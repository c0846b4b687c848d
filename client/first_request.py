"""Sends one picture to the model `tinyvit` and prints its five best labels."""

import sys

import numpy as np
import requests
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image

picture = sys.argv[1] if len(sys.argv) > 1 else "imgs/cat.jpg"
pixels = np.asarray(Image.open(picture).convert("RGB"))
request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", pixels)])
answer = requests.post(
    "http://localhost:8080/v2/models/tinyvit/infer", json=request.model_dump(), timeout=60
)
answer.raise_for_status()
labels, scores = InferenceResponse.model_validate(answer.json()).outputs
for label, score in zip(StringCodec.decode_output(labels), scores.data, strict=True):
    print(f"{score:6.1%}  {label}")
