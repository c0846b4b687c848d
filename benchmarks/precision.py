"""What a precision costs in answers: the server compared with timm's own pipeline in fp32.

Crops of the photographs in this repository, with the sample's weights or those of --checkpoint.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import torch
from PIL import Image

from benchmarks.networks import ROOT
from client.local import serving
from tests.support.timm_reference import timm_reference

PHOTOGRAPHS = [*sorted((ROOT / "imgs").glob("c*.jpg")), *sorted((ROOT / "tests").glob("*/*.jpg"))]
SHORTEST = 0.4
"""Minimum edge of a crop, as a share of the photograph's shorter edge."""


def crops(each: int) -> Iterator[Image.Image]:
    """Yield `each` squares of every photograph, of any size and place."""
    random = np.random.default_rng(0)
    for path in PHOTOGRAPHS:
        photograph = Image.open(path).convert("RGB")
        for _ in range(each):
            side = int(min(photograph.size) * random.uniform(SHORTEST, 1))
            left, top = (random.integers(0, edge - side + 1) for edge in photograph.size)
            yield photograph.crop((left, top, left + side, top + side))


def served_scores(url: str, image: Image.Image) -> np.ndarray:
    """Return the server's scores of all classes, in the classes' order."""
    file = io.BytesIO()
    image.save(file, "PNG")
    content = len(file.getvalue()).to_bytes(4, "little") + file.getvalue()
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1]}
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = requests.post(f"{url}/infer", head + content, headers=headers, timeout=60)
    return torch.tensor(response.json()["outputs"][0]["data"]).softmax(0).numpy()


def main() -> None:
    """Compare every crop and print how far the scores are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "tinyvit" / "sample")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--each", type=int, default=60, help="crops of each photograph")
    options = parser.parse_args()
    reference, gaps, same = timm_reference(options.checkpoint), [], 0
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "MLSERVER_MODEL_URI": str(options.checkpoint.resolve()),
            "TINYVIT_PRECISION": options.precision,
            "HF_HUB_OFFLINE": "1",
        }
        log = Path(folder) / "log"
        with serving(ROOT / "tinyvit", env=env, log=log, cwd=Path(folder)) as server:
            url = f"{server.url}/v2/models/tinyvit"
            facts = requests.get(url, timeout=60).json()["parameters"]
            for image in crops(options.each):
                expected, scores = reference.probabilities(image), served_scores(url, image)
                gaps.append(float(abs(expected - scores).max()))
                same += int(expected.argmax() == scores.argmax())
    median, p99 = np.quantile(gaps, [0.5, 0.99])
    print(
        f"{facts['weights']}, {facts['engine']} {facts['precision']}: {same} of {len(gaps)} crops "
        f"of {len(PHOTOGRAPHS)} photographs keep timm's best label. The largest error of a score "
        f"is {max(gaps):.4f}; its median over the crops is {median:.4f}, its 99th percentile "
        f"{p99:.4f}."
    )


if __name__ == "__main__":
    main()
