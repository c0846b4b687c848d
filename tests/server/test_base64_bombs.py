"""Large texts that are base64 in an unusual way, or none, cost nobody else time or memory."""

import base64
import json

import pytest
import requests

from client.local import LocalServer
from tests.support.clients import COFFEE, assert_refused
from tests.support.resource_monitor import MEGABYTE, watching

SIZE = 60 * MEGABYTE
JSON = {"Content-Type": "application/json"}
TEXTS = {
    "a blank after each letter": b"A " * (SIZE // 2),
    "a tab after four letters": b"AAAA\t" * (SIZE // 5),
    "letters beyond ASCII": "é".encode() * (SIZE // 2),
    "one of four bytes": "😀".encode() + b"A" * (SIZE - 4),
    "one of four bytes, escaped": b"\\ud83d\\ude00" + b"A" * (SIZE - 12),
    "escaped letters": b"\\u0041" * (SIZE // 6),
    "escaped line ends": b"A\\n" * (SIZE // 3),
    "the other alphabet": b"-_" * (SIZE // 2),
}


def infer(text: bytes) -> bytes:
    tensor = b'{"name":"payload","shape":[1],"datatype":"BYTES","data":["%b"]}' % text
    return b'{"inputs":[%b]}' % tensor


@pytest.mark.exclusive
@pytest.mark.parametrize("kind", TEXTS)
def test_it_is_refused(server: LocalServer, kind: str) -> None:
    url = f"{server.url}/v2/models/tinyvit/infer"
    with watching(server) as watch:
        answer = requests.post(url, infer(TEXTS[kind]), headers=JSON, timeout=60)
    assert_refused(answer, 400)
    assert watch.growth < 200 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.gap < 0.5
    assert not watch.failures


@pytest.mark.exclusive
def test_a_large_file_in_lines_of_base64_is_answered(server: LocalServer) -> None:
    """As MIME and the command `base64` write it."""
    file = COFFEE.read_bytes()
    text = base64.encodebytes(file + bytes(40 * MEGABYTE)).decode()
    body = json.dumps({"inputs": text}).encode()
    url = f"{server.url}/v2/models/tinyvit/classify"
    with watching(server) as watch:
        answer = requests.post(url, body, headers=JSON, timeout=60)
    assert answer.json() == requests.post(url, file, timeout=60).json()
    assert watch.growth < 200 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.gap < 0.3
    assert not watch.failures


@pytest.mark.parametrize("url", [False, True])
def test_base64_in_the_place_of_the_file(either_server: LocalServer, url: bool) -> None:
    """As the body, in a form, and as bytes over gRPC."""
    file = COFFEE.read_bytes()
    text = b"data:image/jpeg;base64," * url + base64.b64encode(file)
    address = f"{either_server.url}/v2/models/tinyvit/classify"
    expected = requests.post(address, file, timeout=60).json()
    assert requests.post(address, text, timeout=60).json() == expected
    assert requests.post(address, files={"a": text}, timeout=60).json() == expected


@pytest.mark.parametrize(
    "address",
    [
        "https://bucket.example/cat.jpg?signature=" + "a" * 400,
        "www.example.com/cat",
        "example.com/cat.jpg?size=2",
        "C:\\pictures\\cat.jpg",
    ],
)
def test_addresses_are_told_as_such(server: LocalServer, address: str) -> None:
    url = f"{server.url}/v2/models/tinyvit"
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1], "data": [address]}
    for answer in (
        requests.post(f"{url}/infer", json={"inputs": [tensor]}, timeout=60),
        requests.post(f"{url}/classify", json={"inputs": address}, timeout=60),
        requests.post(f"{url}/classify", data=address.encode(), timeout=60),
    ):
        assert "othing is fetched" in assert_refused(answer, 400), json.dumps(answer.json())
