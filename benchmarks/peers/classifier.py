"""What every peer with OpenVINO computes: the five best labels of a JPEG, on the CPU, in float32.

The network is the file that this runtime converted, the pixels are the ones that timm's transform
gives, so that peers differ only in what is around both. Needs Pillow, NumPy and OpenVINO.
"""

import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

sys.modules["openvino_telemetry"] = None  # else importing openvino leaves a process behind
import openvino  # noqa: E402

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)
"""Processes, or streams in one process, that share the cores evenly."""


class Classifier:
    """The network of an exported folder, compiled for throughput as OpenVINO's documentation says.

    Streams compute at the same time, each on its share of `threads`. Only for a network that takes
    one image at a time are all sizes known beforehand, which saves 2 to 7 %.
    """

    def __init__(self, folder: str, streams: int, threads: int, batches: bool = False) -> None:
        description = json.loads(Path(folder, "description.json").read_text())["description"]
        self._names = description["labels"]
        self._side = description["input_size"][0]
        self._scaled = int(self._side / description["crop_pct"])
        self._filter = Image.Resampling[description["interpolation"].upper()]
        model = openvino.Core().read_model(Path(folder, "model.xml"))
        if not batches:
            model.reshape([1, self._side, self._side, 3])
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor can
            "ENABLE_CPU_PINNING": streams > 1,  # else all processes are bound to the same core
        }
        self._network = openvino.Core().compile_model(model, "CPU", settings)
        self._of_thread = threading.local()
        # Once before there are threads: several that infer for the first time, while Pillow imports
        # its formats, have waited for each other without end.
        self._infer(np.zeros((1, self._side, self._side, 3), np.uint8))

    def pixels(self, jpeg: bytes) -> np.ndarray:
        """Return uint8 `[H,W,3]`: the shorter edge resized, then the middle cropped to a square."""
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        short, long = sorted(image.size)
        other = int(self._scaled * long / short)
        size = (self._scaled, other) if image.width <= image.height else (other, self._scaled)
        left, top = (round((edge - self._side) / 2) for edge in size)
        box = (left, top, left + self._side, top + self._side)
        return np.asarray(image.resize(size, self._filter).crop(box))

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 `[N,C]`; this thread's next call overwrites them."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._network.create_infer_request()
        outputs = self._of_thread.request.infer([batch], share_inputs=True, share_outputs=True)
        return outputs["probabilities"]

    def labels(self, batch: np.ndarray) -> list[list[str]]:
        """Return the five best labels of each image in uint8 `[N,H,W,3]`, best first."""
        probabilities = self._infer(batch)
        best = np.argpartition(probabilities, -5)[:, -5:]
        return [
            [self._names[i] for i in best_five[np.argsort(-row[best_five], kind="stable")]]
            for row, best_five in zip(probabilities, best, strict=True)
        ]

    def __call__(self, jpeg: bytes) -> list[str]:
        return self.labels(self.pixels(jpeg)[np.newaxis])[0]
