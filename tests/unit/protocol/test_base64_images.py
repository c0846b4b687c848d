"""Base64 in all usual forms, and text that is not base64."""

import base64
import json
import textwrap

import pytest

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.protocol import base64_images
from mlserver_timm.protocol.base64_images import decode_base64, file_bytes
from mlserver_timm.protocol.json_body import read_infer
from tests.support.clients import assert_sentence, image_file

FILE = image_file("PNG")
PLAIN = base64.b64encode(FILE).decode()

TEXTS = {
    "plain": PLAIN,
    "url-safe": base64.urlsafe_b64encode(FILE).decode(),
    "without-padding": base64.urlsafe_b64encode(FILE).decode().rstrip("="),
    "line-breaks": "\n".join(textwrap.wrap(PLAIN, 76)) + "\n",
    "windows-line-breaks": "\r\n".join(textwrap.wrap(PLAIN, 64)),
    "data-url": f"data:image/png;base64,{PLAIN}",
    "data-url-with-parameters": f"data:image/png;charset=utf-8;BASE64,{PLAIN}",
    "data-url-without-type": f"data:;base64,{PLAIN}",
    "data-url-in-lines": f"data:image/png;base64,\n{base64.encodebytes(FILE).decode()}",
}


def read_json(text: str, escape_slashes: bool = False) -> bytes:
    """Return the file that a JSON request has in base64."""
    element = json.dumps(text)
    if escape_slashes:
        element = element.replace("/", "\\/").replace("+", "\\u002b")
    tensor = f'{{"name":"payload","shape":[1],"datatype":"BYTES","data":[{element}]}}'
    [file] = read_infer(f'{{"inputs":[{tensor}]}}'.encode()).inputs[0].data
    return bytes(file)


@pytest.mark.parametrize("slice_size", [base64_images.SLICE, 64])
@pytest.mark.parametrize("name", TEXTS)
def test_accepted(name: str, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON, also with the escapes of PHP and .NET, and as bytes."""
    monkeypatch.setattr(base64_images, "SLICE", slice_size)
    assert decode_base64(TEXTS[name].encode()) == FILE
    assert file_bytes(TEXTS[name].encode()) == FILE
    assert read_json(TEXTS[name]) == read_json(TEXTS[name], escape_slashes=True) == FILE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_files_are_not_taken_for_text(kind: str) -> None:
    data = image_file(kind)
    assert file_bytes(data) is data


ADDRESSES = [
    "https://example.org/cat.jpg",
    "https://bucket.example/cat.jpg?signature=" + "a" * 400,
    "s3://bucket/key",
    "file:///etc/passwd",
    "imgs/cat.jpg",
    "./cat.png",
    "www.example.com/cat",
    "example.com/cat.jpg?size=2",
    r"C:\images\cat.jpeg",
    "cat.tiff",
    "https://example.org/Kätzchen.jpg",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_nothing_is_fetched(text: str) -> None:
    with pytest.raises(InvalidRequest, match="nothing is fetched") as error:
        read_json(text)
    assert_sentence(str(error.value))
    with pytest.raises(InvalidImage, match="nothing is fetched"):
        file_bytes(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        *["*" * 400, "ä", "abcde", "data:image/png,notbase64", "a" * 5 + "\0", "a=b=", "!!!!", "A"],
        *["AAAA=AAA", "AA==AA==", "日本語", "AAAA" * 30 + "=" + "A" * 80],
    ],
)
def test_not_base64(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64_images, "SLICE", 64)
    with pytest.raises(InvalidRequest, match="not valid base64") as error:
        read_json(text)
    assert_sentence(str(error.value))
    assert file_bytes(text.encode()) == text.encode()  # the decoder's error lists the formats


def test_empty() -> None:
    with pytest.raises(InvalidImage, match="empty; send the bytes of a JPEG"):
        file_bytes(b"")
