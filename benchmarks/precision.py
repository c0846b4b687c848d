"""What bf16 costs in answers: the server beside timm's own pipeline in fp32, over crops of the
photographs in this repository, with the sample's weights or those of --checkpoint.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import timm
import torch
from inputs import ROOT
from PIL import Image
from timm.data import create_transform, resolve_data_config

sys.path.insert(0, str(ROOT / "client"))
from client.local import serving

PHOTOGRAPHS = [*sorted((ROOT / "imgs").glob("c*.jpg")), *sorted((ROOT / "tests").glob("*/*.jpg"))]
SHORTEST = 0.4
"""Of a crop's edge, in parts of the photograph's shorter one."""


def crops(each: int) -> Iterator[Image.Image]:
    """So many squares of every photograph, of any size and place."""
    random = np.random.default_rng(0)
    for path in PHOTOGRAPHS:
        photograph = Image.open(path).convert("RGB")
        for _ in range(each):
            side = int(min(photograph.size) * random.uniform(SHORTEST, 1))
            left, top = (random.integers(0, edge - side + 1) for edge in photograph.size)
            yield photograph.crop((left, top, left + side, top + side))


class Timm:
    """timm's pipeline, as its documentation has it."""

    def __init__(self, checkpoint: Path) -> None:
        self._network = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
        self._transform = create_transform(**resolve_data_config(model=self._network))
        self.classes = self._network.num_classes

    def scores(self, picture: Image.Image) -> np.ndarray:
        with torch.inference_mode():
            return self._network(self._transform(picture)[None])[0].softmax(0).numpy()


def served(url: str, picture: Image.Image) -> np.ndarray:
    """The scores of all classes, in the classes' order."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1]}
    content = len(file.getvalue()).to_bytes(4, "little") + file.getvalue()
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = requests.post(url, head + content, headers=headers, timeout=60)
    logits = torch.tensor(answer.json()["outputs"][0]["data"])
    return logits.softmax(0).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "tinyvit" / "sample")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--each", type=int, default=60, help="crops of each photograph")
    options = parser.parse_args()
    exact, gaps, kept = Timm(options.checkpoint), [], 0
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "MLSERVER_MODEL_URI": str(options.checkpoint.resolve()),
            "TINYVIT_PRECISION": options.precision,
            "HF_HUB_OFFLINE": "1",
        }
        log = Path(folder) / "log"
        with serving(ROOT / "tinyvit", env=env, log=log, cwd=Path(folder)) as server:
            model = f"{server.url}/v2/models/tinyvit"
            facts = requests.get(model, timeout=60).json()["parameters"]
            for picture in crops(options.each):
                wanted, got = exact.scores(picture), served(f"{model}/infer", picture)
                gaps.append(float(abs(wanted - got).max()))
                kept += int(wanted.argmax() == got.argmax())
    middle, most = np.quantile(gaps, [0.5, 0.99])
    print(
        f"{facts['weights']}, {facts['engine']} {facts['precision']}: of {len(gaps)} crops of "
        f"{len(PHOTOGRAPHS)} photographs {kept} keep timm's best label; a score is off by "
        f"{max(gaps):.4f} at most, by {middle:.4f} in half of them, under {most:.4f} in 99 of 100."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
