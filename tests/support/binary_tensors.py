"""Requests and responses of the binary tensor data extension."""

import json
import struct
from typing import Any

import numpy as np

from tests.support.clients import Server, request

HEADER = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "UINT8": "u1"}


def elements(*files: bytes) -> bytes:
    """Return BYTES: each file after its length in 4 bytes."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def binary_tensor(data: bytes, shape: Any, datatype: str, **more: Any) -> dict[str, Any]:
    """Return the JSON of a tensor whose data follows the JSON."""
    parameters = {"binary_data_size": len(data), **more}
    return {"name": "payload", "shape": shape, "datatype": datatype, "parameters": parameters}


def send(
    server: Server,
    request_body: Any,
    *tensors: bytes,
    length: Any = None,
    path: str = "infer",
    **headers: str,
) -> Any:
    """Post the JSON and the tensors; `length` overrides the length of the JSON in the header."""
    text = request_body if isinstance(request_body, bytes) else json.dumps(request_body).encode()
    headers = {HEADER: str(len(text) if length is None else length), **headers}
    data = b"".join([text, *tensors])
    return request(server, "POST", f"/v2/models/tinyvit/{path}", data=data, headers=headers)


def read(response: Any) -> dict[str, Any]:
    """Return outputs by name: numbers and labels as lists."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER, len(response.content)))
    content, rest = json.loads(response.content[:length]), response.content[length:]
    outputs = {}
    for output in content["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[output["name"]] = output["data"]
            continue
        assert "data" not in output, output["name"]
        data, rest = rest[:size], rest[size:]
        assert len(data) == size, output["name"]
        outputs[output["name"]] = _decoded(data, output)
    assert not rest
    return outputs


def _decoded(data: bytes, output: dict[str, Any]) -> Any:
    if output["datatype"] == "BYTES":
        return strings_of(data)
    return np.frombuffer(data, DTYPES[output["datatype"]]).tolist()


def strings_of(data: bytes) -> list[str]:
    """Return the elements of BYTES as text."""
    strings = []
    while data:
        (size,) = struct.unpack("<I", data[:4])
        strings.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return strings
