"""Triton's Python backend: JPEGs in, labels out, the requests of a batch in one call."""

import os
import sys

# The interpreter inside Triton's stub ignores PYTHONPATH.
for folder in os.environ["CLASSIFIER_PATH"].split(os.pathsep):
    sys.path.insert(0, folder)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from classifier import CORES, WORKERS, Classifier  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._classifier = Classifier(
            os.environ["CLASSIFIER_FOLDER"], streams=1, threads=CORES // WORKERS, batches=True
        )

    def execute(self, requests: list) -> list:
        jpegs = [
            pb_utils.get_input_tensor_by_name(request, "payload").as_numpy().ravel()
            for request in requests
        ]
        pixels = [self._classifier.pixels(jpeg) for group in jpegs for jpeg in group]
        labels = iter(self._classifier.labels(np.stack(pixels)))
        return [self._response([next(labels) for _ in group]) for group in jpegs]

    def _response(self, labels: list[list[str]]) -> "pb_utils.InferenceResponse":
        encoded = np.array([[label.encode() for label in row] for row in labels], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("labels", encoded)])
