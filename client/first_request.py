"""Send one image to the model `tinyvit` and print the labels that it returns."""

import sys

import numpy as np
import requests
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image

URL = "http://localhost:8080/v2/models/tinyvit/infer"
try:
    image = Image.open(sys.argv[1] if len(sys.argv) > 1 else "imgs/cat.jpg").convert("RGB")
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", np.asarray(image))])
    response = requests.post(URL, json=request.model_dump(), timeout=60)
except requests.RequestException as error:
    sys.exit(f"No answer from {URL} ({type(error).__name__}): start the server first.")
except OSError as error:
    sys.exit(f"Cannot read the image: {error}.")
if not response.ok:
    sys.exit(f"The server refused the request: {response.status_code} {response.text}")
labels, *scores = InferenceResponse.model_validate(response.json()).outputs
if not scores:
    sys.exit(f"The model has one output, {labels.name}: {labels.datatype} {labels.shape}.")
for label, score in zip(StringCodec.decode_output(labels), scores[0].data, strict=True):
    print(f"{score:6.1%}  {label}")
