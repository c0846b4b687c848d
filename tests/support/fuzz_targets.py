"""Fuzz targets: any bytes get an answer or a refusal in one sentence."""

import io
import json
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from mlserver.grpc import dataplane_pb2 as pb

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images import decode
from mlserver_timm.images.transforms import EvaluationTransform
from mlserver_timm.images.worker import check_size
from mlserver_timm.protocol.classify_body import read_classify
from mlserver_timm.protocol.json_body import read_infer
from mlserver_timm.protocol.request import InferRequest, classification_request
from mlserver_timm.server.grpc_messages import read_message
from tests.support.clients import assert_sentence, image_file, tensor, text
from tests.support.mutations import files

MAX_PIXELS = 250_000
SIZE = (64, 64)
TRANSFORM = EvaluationTransform(SIZE, "bicubic", 0.95, "center", (124, 116, 104))
JSON, BINARY, FILE, FORM, MESSAGE = b"j", b"b", b"i", b"f", b"g"
"""Kinds of body."""


NETWORK_OUTPUTS = {"probabilities": 3, "logits": 3, "embedding": 8}
"""Values of each output for an image."""


def decode_file(data: bytes) -> None:
    """Decode an image file to the network's pixels; InvalidImage has one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if size := decode.webp_size(data[:30]):
                check_size(*size, MAX_PIXELS)  # as a decoder process does: opening takes memory
            image = decode.open_file(io.BytesIO(data))
            check_size(*image.size, MAX_PIXELS)
            pixels = TRANSFORM(image)
        except decode.InvalidImage as error:
            assert_sentence(str(error))
            return
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8


def read_body(data: bytes) -> None:
    """Read a body as images, or raise InvalidRequest. The first byte names the route, the next two
    the length of the JSON."""
    kind, length, body = data[:1], int.from_bytes(data[1:3], "big"), data[3:]
    readers: dict[bytes, Callable[[], InferRequest]] = {
        JSON: lambda: read_infer(body),
        BINARY: lambda: read_infer(body, "application/json", str(length)),
        FILE: lambda: read_classify(body),
        FORM: lambda: read_classify(body, "multipart/form-data; boundary=x"),
        MESSAGE: lambda: read_message(body).request,
    }
    if kind not in readers:
        return
    try:
        classification_request(readers[kind](), NETWORK_OUTPUTS)
    except DecodeError:
        assert kind == MESSAGE  # the server answers these with one sentence
    except (InvalidImage, InvalidRequest) as error:
        assert_sentence(str(error))


def bodies() -> Iterable[bytes]:
    """Yield valid bodies of each kind."""
    small = image_file("PNG", (8, 8))
    pixels = tensor([1, 2, 3], [1, 1, 3], "UINT8")
    for one in (pixels, tensor(small), tensor([[[1, 2, 3]]], [1, 1, 3], "INT64")):
        yield body(JSON, {"id": "1", "inputs": [one], "parameters": {"top_k": 2}})
    yield body(JSON, {"inputs": [pixels], "outputs": [{"name": "logits"}]})
    yield body(BINARY, {"inputs": [binary("UINT8", [2, 2, 3], 12)]}, bytes(12))
    element = len(small).to_bytes(4, "little") + small
    yield body(BINARY, {"inputs": [binary("BYTES", [1], len(element))]}, element)
    yield FILE + b"\0\0" + small
    yield body(FILE, {"inputs": text(small), "parameters": {"top_k": 2}})
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'
    yield FORM + b"\0\0" + part + small + b"\r\n--x--\r\n"
    yield from messages(small)


def messages(file: bytes) -> Iterable[bytes]:
    """Yield valid gRPC messages: a file and pixels, each in contents and raw."""
    pixels, element = bytes(range(250, 256)) * 2, len(file).to_bytes(4, "little") + file
    for datatype, shape, contents, raw in (
        ("BYTES", [1], {"bytes_contents": [file]}, []),
        ("BYTES", [1], {}, [element]),
        ("UINT8", [2, 2, 3], {"uint_contents": pixels}, []),
        ("INT64", [2, 2, 3], {"int64_contents": pixels}, []),
        ("UINT8", [2, 2, 3], {}, [pixels]),
    ):
        request = pb.ModelInferRequest(model_name="x", raw_input_contents=raw)
        request.inputs.add(name="payload", datatype=datatype, shape=shape).contents.CopyFrom(
            pb.InferTensorContents(**contents)
        )
        yield MESSAGE + b"\0\0" + request.SerializeToString()


def binary(datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": "payload", "datatype": datatype, "shape": shape, "parameters": parameters}


def body(kind: bytes, content: dict[str, Any], raw: bytes = b"") -> bytes:
    head = json.dumps(content).encode()
    return kind + len(head).to_bytes(2, "big") + head + raw


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterable[bytes]]]] = {
    "decoders": (decode_file, files),
    "request-reader": (read_body, bodies),
}
"""Functions and their seeds."""
