"""Classify the cat with MLServer's Hugging Face runtime: the program of `make demo-huggingface`."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from client.demo import demonstrate  # noqa: E402
from client.local import LocalServer  # noqa: E402

INFER = "/v2/models/huggingface/infer"
IMAGE = ROOT / "imgs" / "cat.jpg"


def request_for(*images: bytes) -> dict[str, Any]:
    """Return the runtime's request for image files: base64 text, opened by `pillow_image`."""
    tensor = {
        "name": "inputs",
        "datatype": "BYTES",
        "shape": [len(images)],
        "data": [base64.b64encode(image).decode() for image in images],
        "parameters": {"content_type": "pillow_image"},
    }
    return {"inputs": [tensor]}


def rankings_in(response: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return `[{"label": ..., "score": ...}, ...]` for each image, best first."""
    return [json.loads(ranking) for ranking in response["outputs"][0]["data"]]


def ask(server: LocalServer) -> int:
    """Print the labels of the cat; return the exit status."""
    response = requests.post(server.url + INFER, json=request_for(IMAGE.read_bytes()), timeout=60)
    if not response.ok:
        print(f"The server refused the request: {response.text}", file=sys.stderr)
        return 1
    print(IMAGE.relative_to(ROOT))
    for prediction in rankings_in(response.json())[0]:
        print(f"  {prediction['score']:6.1%}  {prediction['label']}")
    return 0


if __name__ == "__main__":
    sys.exit(demonstrate("huggingface", ask, HF_HUB_OFFLINE="1"))
