"""Requests and answers of the binary tensor data extension, made and read by hand."""

import json
import struct
from typing import Any

import numpy as np
import requests

from client.local import LocalServer

HEADER = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "UINT8": "u1"}


def elements(*files: bytes) -> bytes:
    """BYTES: each file's length in 4 bytes, and the file."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def binary_tensor(data: bytes, shape: Any, datatype: str, **more: Any) -> dict[str, Any]:
    """The JSON of a tensor whose data follows the JSON."""
    parameters = {"binary_data_size": len(data), **more}
    return {"name": "payload", "shape": shape, "datatype": datatype, "parameters": parameters}


def send(
    server: LocalServer,
    request: Any,
    *tensors: bytes,
    length: Any = None,
    path: str = "infer",
    **headers: str,
) -> requests.Response:
    """Posts the JSON and the tensors; `length` where the header is to say another than it is."""
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = {HEADER: str(len(text) if length is None else length), **headers}
    url = f"{server.url}/v2/models/tinyvit/{path}"
    return requests.post(url, data=b"".join([text, *tensors]), headers=headers, timeout=60)


def read(response: requests.Response) -> dict[str, Any]:
    """Outputs by name, as arrays; of BYTES as lists of bytes."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER, len(response.content)))
    content, rest = json.loads(response.content[:length]), response.content[length:]
    outputs = {}
    for output in content["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[output["name"]] = output["data"]
            continue
        assert "data" not in output
        data, rest = rest[:size], rest[size:]
        assert len(data) == size
        outputs[output["name"]] = _decoded(data, output)
    assert not rest
    return outputs


def _decoded(data: bytes, output: dict[str, Any]) -> Any:
    if output["datatype"] == "BYTES":
        found = []
        while data:
            (size,) = struct.unpack("<I", data[:4])
            found.append(data[4 : 4 + size].decode())
            data = data[4 + size :]
        return found
    return np.frombuffer(data, DTYPES[output["datatype"]]).tolist()
