"""Print the five of twenty images that are nearest to an image: python lab/nearest.py IMAGE.

Start the server first: `mlserver start tinyvit`. The twenty images are the quarters of
five photographs. Two images are near if the cosine of their embeddings is large.
"""

import sys
from pathlib import Path

import numpy as np
import requests
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestOutput
from PIL import Image

URL = "http://localhost:8080/v2/models/tinyvit/infer"
ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = [ROOT / "imgs" / f"{name}.jpg" for name in ("cat", "coffee")]
PHOTOGRAPHS += [ROOT / "tests" / "photographs" / f"{n}.jpg" for n in ("hammer", "puffer", "rocket")]


def embedding(image: Image.Image) -> np.ndarray:
    """Return the image's embedding, scaled to length 1: the product of two is their cosine."""
    pixels = NumpyCodec.encode_input("payload", np.asarray(image.convert("RGB")))
    request = InferenceRequest(inputs=[pixels], outputs=[RequestOutput(name="embedding")])
    response = requests.post(URL, json=request.model_dump(), timeout=60)
    if not response.ok:
        sys.exit(f"The server refused the request: {response.status_code} {response.text}")
    output, *_ = InferenceResponse.model_validate(response.json()).outputs
    if output.name != "embedding":
        sys.exit(f"The model returns no embedding but {output.name}: run `mlserver start tinyvit`.")
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
    query = embedding(Image.open(sys.argv[1]))
    cosines = {
        f"{path.stem}, {place}": query @ embedding(quarter)
        for path in PHOTOGRAPHS
        for place, quarter in quarters(Image.open(path)).items()
    }
    for name, cosine in sorted(cosines.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{cosine:.2f}  {name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python lab/nearest.py IMAGE, for example imgs/coffee.jpg.")
    try:
        main()
    except requests.RequestException as error:
        sys.exit(f"No answer from {URL} ({type(error).__name__}): run `mlserver start tinyvit`.")
    except OSError as error:
        sys.exit(f"Cannot read the image: {error}.")
