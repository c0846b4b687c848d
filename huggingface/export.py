"""Convert a timm checkpoint into a folder that Optimum serves with `"optimum_model": true`.

python huggingface/export.py CHECKPOINT FOLDER

Without it, Optimum 1.27 converts at load, and fails: it takes the checkpoint's folder for the id of
a model on the Hub, and drops the labels. It does neither if the folder contains model.onnx and a
config.json with `id2label`.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from transformers import AutoConfig


def export(checkpoint: Path, folder: Path) -> None:
    """Write `folder`/model.onnx and `folder`/config.json, which is timm's with `id2label`.

    The network takes `pixel_values` `[N,3,H,W]` and returns `logits` `[N,classes]`, both FP32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"] = AutoConfig.from_pretrained(checkpoint).id2label
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    network = timm.create_model(f"local-dir:{checkpoint}", pretrained=True, exportable=True)
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, *network.pretrained_cfg["input_size"]),),
        str(folder / "model.onnx"),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    export(Path(sys.argv[1]), Path(sys.argv[2]))
