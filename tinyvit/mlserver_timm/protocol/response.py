"""From the network's outputs to an answer, in JSON or with binary tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from mlserver_timm.protocol.binary_tensors import write_elements
from mlserver_timm.protocol.json_body import BINARY_SIZE
from mlserver_timm.protocol.request import (
    BYTES,
    LABELS,
    OPTIONAL_OUTPUTS,
    SCORES,
    SIGMOID,
    ClassificationRequest,
)

FP32 = "FP32"

CONTENT_TYPES = {BYTES: "str", FP32: "np"}
"""Content types, by datatype, with which MLServer's codecs decode an output."""


@dataclass(frozen=True)
class OutputTensor:
    """One output: float32 as a numpy array, or labels as text."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray | list[str]


@dataclass(frozen=True)
class ClassificationResponse:
    """The answer to a request, whichever transport sends it."""

    model_name: str
    model_version: str | None
    id: str | None
    outputs: tuple[OutputTensor, ...]
    binary_outputs: frozenset[str] = frozenset()
    """Outputs that follow the JSON as binary tensors."""


def classification_response(
    request: ClassificationRequest,
    results: Mapping[str, np.ndarray],
    labels: Sequence[str],
    model_name: str,
    model_version: str | None = None,
) -> ClassificationResponse:
    """Return the outputs that the request asks for, from the network's `results`, each `[N,...]`.

    `labels` has one for each class.
    """
    tensors = {
        name: OutputTensor(name, FP32, values.shape, values) for name, values in results.items()
    }
    if LABELS in request.outputs or SCORES in request.outputs:
        values = results[request.scored_output]
        best = top(values, request.top_k)
        scores = np.take_along_axis(values, best, axis=1)
        if request.function == SIGMOID:
            scores = _sigmoid(scores)
        names = [labels[i] for i in best.flat]
        tensors[LABELS] = OutputTensor(LABELS, BYTES, best.shape, names)
        tensors[SCORES] = OutputTensor(SCORES, FP32, best.shape, scores)
    outputs = tuple(tensors[name] for name in request.outputs)
    return ClassificationResponse(
        model_name, model_version, request.id, outputs, request.binary_outputs
    )


def encode(response: ClassificationResponse) -> tuple[bytes, list[bytes]]:
    """Return the JSON of an answer, and the tensors that follow it, little-endian."""
    outputs, tensors = [], []
    for output in response.outputs:
        data = output.data
        parameters: dict[str, Any] = {"content_type": CONTENT_TYPES[output.datatype]}
        described = {
            **{"name": output.name, "shape": output.shape, "datatype": output.datatype},
            "parameters": parameters,
        }
        if output.name in response.binary_outputs:
            tensors.append(tensor_bytes(data))
            parameters[BINARY_SIZE] = len(tensors[-1])
        else:
            described["data"] = data.ravel().tolist() if isinstance(data, np.ndarray) else data
        outputs.append(described)
    head: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        head["model_version"] = response.model_version
    if response.id is not None:
        head["id"] = response.id
    return orjson.dumps(head | {"parameters": {}, "outputs": outputs}), tensors


def encode_rankings(response: ClassificationResponse) -> bytes:
    """Return /classify's JSON, as Hugging Face writes it: labels and scores, best first.

    Several images get a list with one such list each.
    """
    data = {output.name: output.data for output in response.outputs}
    images, k = response.outputs[0].shape
    pairs = [
        {"label": label, "score": score}
        for label, score in zip(data[LABELS], np.ravel(data[SCORES]).tolist(), strict=True)
    ]
    rankings = [pairs[i * k : (i + 1) * k] for i in range(images)]
    return orjson.dumps(rankings if images > 1 else pairs)


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the indices `[N,k]` of the k largest values in each row of `[N,classes]`, best first.

    Equal values keep the order of their indices.
    """
    best = []
    for row in scores:
        candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
        best.append(candidates[np.argsort(-row[candidates], kind="stable")[:k]])
    return np.stack(best)


def declared_outputs(network_outputs: Mapping[str, int]) -> list[tuple[str, str, list[int]]]:
    """Return name, datatype and shape of every output that a model offers; -1 is a dimension that
    the request decides."""
    optional = [
        (name, network_outputs[name]) for name in OPTIONAL_OUTPUTS if name in network_outputs
    ]
    return [
        (LABELS, BYTES, [-1, -1]),
        (SCORES, FP32, [-1, -1]),
        *[(name, FP32, [-1, width]) for name, width in optional],
    ]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    exponents = np.minimum(-logits.astype(np.float64), 700)  # beyond, exp overflows
    return (1 / (1 + np.exp(exponents))).astype(np.float32)


def tensor_bytes(data: np.ndarray | list[str]) -> bytes:
    """Return the data as a binary tensor: little-endian, BYTES with the length of each element."""
    if isinstance(data, np.ndarray):
        return data.astype("<f4", copy=False).tobytes()
    return write_elements([label.encode() for label in data])
