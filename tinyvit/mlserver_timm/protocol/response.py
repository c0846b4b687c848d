"""Scores to labels, and the outputs of a response."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.types import (
    Datatype,
    InferenceResponse,
    MetadataModelResponse,
    MetadataTensor,
    Parameters,
    ResponseOutput,
)

from mlserver_timm.protocol.request import (
    LABELS,
    OPTIONAL_OUTPUTS,
    SCORES,
    ClassificationRequest,
    Served,
)

PARTITION_THRESHOLD = 32
"""Labels up to which one maximum after the other is the fastest way to find them."""


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices `[N,k]` of the k largest of each row of `[N,classes]`, best first; of equals, the
    first."""
    return np.stack([_top(row, k) for row in scores])


def _top(row: np.ndarray, k: int) -> np.ndarray:
    if k > PARTITION_THRESHOLD:
        candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
        return candidates[np.argsort(-row[candidates], kind="stable")[:k]]
    rest, best = row.copy(), np.empty(k, np.intp)
    for place in range(k):  # a tenth of what numpy's partition takes for 5 of 21841
        best[place] = rest.argmax()
        rest[best[place]] = -np.inf
    return best


def encode_response(
    request: ClassificationRequest,
    results: Mapping[str, np.ndarray],
    labels: Sequence[str],
    model_name: str,
    model_version: str | None,
) -> InferenceResponse:
    """The outputs asked for, from the network's `results`, each `[N,...]`."""
    best = np.empty((0, 0), np.intp)
    if {LABELS, SCORES} & set(request.outputs):
        best = top(results[request.scored_output], request.top_k)
    return InferenceResponse(
        model_name=model_name,
        model_version=model_version,
        outputs=[_encode(name, request, results, best, labels) for name in request.outputs],
    )


def _encode(
    name: str,
    request: ClassificationRequest,
    results: Mapping[str, np.ndarray],
    best: np.ndarray,
    labels: Sequence[str],
) -> ResponseOutput:
    if name in OPTIONAL_OUTPUTS:
        return NumpyCodec.encode_output(name, results[name])
    if name == SCORES:
        scores = np.take_along_axis(results[request.scored_output], best, axis=1)
        if request.function == "sigmoid":
            scores = _sigmoid(scores)
        return NumpyCodec.encode_output(SCORES, scores)
    return ResponseOutput(
        name=LABELS,
        datatype=Datatype.BYTES,
        shape=list(best.shape),
        data=[labels[i].encode() for i in best.flat],
        parameters=Parameters(content_type="str"),
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    exponents = np.minimum(-logits.astype(np.float64), 700)  # beyond, exp overflows
    return (1 / (1 + np.exp(exponents))).astype(np.float32)


def complete_metadata(metadata: MetadataModelResponse, served: Served) -> None:
    """Adds what is really loaded, and all outputs: those of every answer, and those that a request
    has to name."""
    metadata.parameters = Parameters(**served.facts())
    metadata.outputs = _declared_outputs(served)


def _declared_outputs(served: Served) -> list[MetadataTensor]:
    widths = served.network_outputs
    on_request = {name: [-1, widths[name]] for name in OPTIONAL_OUTPUTS if name in widths}
    shapes = {LABELS: [-1, -1], SCORES: [-1, -1], **on_request}
    return [
        MetadataTensor(
            name=name, datatype=Datatype.BYTES if name == LABELS else Datatype.FP32, shape=shape
        )
        for name, shape in shapes.items()
    ]


def rankings(response: InferenceResponse) -> list[list[dict[str, Any]]]:
    """Labels and scores of each image, as Hugging Face's image classification has them:
    `[{"label": ..., "score": ...}, ...]`, best first."""
    labels, scores = (output.data.root for output in response.outputs)
    pairs = [
        {"label": label.decode(), "score": score}
        for label, score in zip(labels, scores, strict=True)
    ]
    images, k = response.outputs[0].shape
    return [pairs[i * k : (i + 1) * k] for i in range(images)]
