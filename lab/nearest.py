"""Finds the nearest of twenty pictures: python lab/nearest.py PICTURE.

It asks the server that `mlserver start tinyvit` starts. The twenty are the quarters of five
photographs. Near is what has a similar embedding: the cosine of both is large.
"""

import sys
from pathlib import Path

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestOutput
from PIL import Image

URL = "http://localhost:8080/v2/models/tinyvit/infer"
PHOTOGRAPHS = ["imgs/cat.jpg", "imgs/coffee.jpg"]
PHOTOGRAPHS += [f"tests/photographs/{name}.jpg" for name in ("hammer", "puffer", "rocket")]


def embedding(picture: Image.Image) -> np.ndarray:
    """Of length 1: the products of two are their cosine."""
    pixels = NumpyCodec.encode_input("payload", np.asarray(picture.convert("RGB")))
    request = InferenceRequest(inputs=[pixels], outputs=[RequestOutput(name="embedding")])
    answer = requests.post(URL, json=request.model_dump(), timeout=60)
    answer.raise_for_status()
    (output,) = InferenceResponse.model_validate(answer.json()).outputs
    values = NumpyCodec.decode_output(output)[0]
    return values / np.linalg.norm(values)


def quarters(photograph: Image.Image) -> dict[str, Image.Image]:
    width, height = photograph.width // 2, photograph.height // 2
    places = {
        "top left": (0, 0),
        "top right": (1, 0),
        "bottom left": (0, 1),
        "bottom right": (1, 1),
    }
    return {
        place: photograph.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        for place, (x, y) in places.items()
    }


def main() -> None:
    asked = embedding(Image.open(sys.argv[1]))
    found = {
        f"{Path(path).stem}, {place}": asked @ embedding(quarter)
        for path in PHOTOGRAPHS
        for place, quarter in quarters(Image.open(path)).items()
    }
    for name, cosine in sorted(found.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{cosine:.2f}  {name}")


if __name__ == "__main__":
    main()
