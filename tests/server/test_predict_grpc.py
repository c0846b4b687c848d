"""The same answers over gRPC, from contents and from raw bytes."""

from typing import Any

import numpy as np
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from client.local import LocalServer
from tests.support.answers import answers, files, photo, pixels, shows
from tests.support.clients import body, message, stub, tensor
from tests.support.timm_reference import TOLERANCE, truth


def told(response: pb.ModelInferResponse) -> tuple[list[str], list[float]]:
    """Raw requests have raw answers: each text is preceded by its length in four bytes."""
    labels, scores = response.outputs
    assert labels.shape == scores.shape
    if not response.raw_output_contents:
        texts = [label.decode() for label in labels.contents.bytes_contents]
        return texts, list(scores.contents.fp32_contents)
    packed, numbers = response.raw_output_contents
    texts = []
    while packed:
        end = 4 + int.from_bytes(packed[:4], "little")
        texts.append(packed[4:end].decode())
        packed = packed[end:]
    return texts, np.frombuffer(numbers, np.float32).tolist()


def rest(server: LocalServer, request: Any) -> tuple[list[str], list[float]]:
    ((labels, scores),) = answers(server, request)
    return labels, scores


FIELDS = {"UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"} | {
    "UINT64": "uint64_contents"
}


@pytest.mark.parametrize("datatype", FIELDS)
def test_grpc_arrays(either_server: LocalServer, datatype: str) -> None:
    """As contents and as raw bytes, equal to REST."""
    array = photo(70, 50)
    expected = rest(either_server, body(pixels(array)))
    one = stub(either_server)
    raw = array.astype(datatype.lower()).tobytes()
    for content in ({FIELDS[datatype]: array.ravel().tolist()}, {"raw": [raw]}):
        request = message(list(array.shape), datatype, **content)
        labels, scores = told(one.ModelInfer(request, timeout=60))
        assert labels == expected[0]
        assert scores == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("kind", ["JPEG cat", "PNG RGBA", "WebP lossy", "GIF animated"])
def test_grpc_files(either_server: LocalServer, kind: str) -> None:
    file = files()[kind][0]
    expected = rest(either_server, body(tensor(file)))
    one = stub(either_server)
    raw = len(file).to_bytes(4, "little") + file
    for content in ({"bytes_contents": [file]}, {"raw": [raw]}):
        labels, scores = told(one.ModelInfer(message(**content), timeout=60))
        assert labels == expected[0]
        assert scores == pytest.approx(expected[1], abs=1e-6)


def test_grpc_options(either_server: LocalServer) -> None:
    """A batch, top_k and the outputs that are asked for."""
    everything = [file for file, _ in files().values()]
    request = message(
        [len(everything)], bytes_contents=everything, asked={"top_k": 3}, outputs=("scores",)
    )
    (scores,) = stub(either_server).ModelInfer(request, timeout=60).outputs
    assert (scores.name, list(scores.shape)) == ("scores", [len(everything), 3])
    rows = np.reshape(scores.contents.fp32_contents, (-1, 3))
    for kind, row in zip(files(), rows, strict=True):
        np.testing.assert_allclose(row, truth().ranking(shows(kind), 3)[1], rtol=0, atol=TOLERANCE)
