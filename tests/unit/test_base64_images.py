"""Files as text: base64 as people's tools write it, and text that is no file."""

import base64
import textwrap

import pytest

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.protocol.base64_images import image_file as file_in
from tests.support.clients import assert_sentence, image_file

FILE = image_file("PNG")
PLAIN = base64.b64encode(FILE).decode()

TEXTS = {
    "plain": PLAIN,
    "bytes": PLAIN.encode(),
    "url-safe": base64.urlsafe_b64encode(FILE).decode(),
    "without-padding": base64.urlsafe_b64encode(FILE).decode().rstrip("="),
    "line-breaks": "\n".join(textwrap.wrap(PLAIN, 76)) + "\n",
    "windows-line-breaks": "\r\n".join(textwrap.wrap(PLAIN, 64)),
    "data-url": f"data:image/png;base64,{PLAIN}",
    "data-url-with-parameters": f"data:image/png;charset=utf-8;BASE64,{PLAIN}",
    "data-url-without-type": f"data:;base64,{PLAIN}",
    "data-url-in-lines": f"data:image/png;base64,\n{base64.encodebytes(FILE).decode()}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_taken(name: str) -> None:
    text = TEXTS[name]
    assert file_in(text, is_base64=isinstance(text, bytes)) == FILE
    assert file_in(text if isinstance(text, bytes) else text.encode()) == FILE


ADDRESSES = [
    "https://example.org/cat.jpg",
    "s3://bucket/key",
    "file:///etc/passwd",
    "imgs/cat.jpg",
    "./cat.png",
    r"C:\pictures\cat.jpeg",
    "cat.tiff",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_nothing_is_fetched(text: str) -> None:
    """As text, and as the bytes that gRPC brings."""
    for sent in (text, text.encode()):
        with pytest.raises((InvalidRequest, InvalidImage), match=r"othing is fetched") as refusal:
            file_in(sent)
        assert_sentence(str(refusal.value))


@pytest.mark.parametrize(
    "text",
    ["*" * 400, "ä", "abcde", "data:image/png,notbase64", "a" * 5 + "\0", b"\xff\xfe", "a=b="],
)
def test_refused(text: str | bytes) -> None:
    with pytest.raises((InvalidRequest, InvalidImage), match="base64|no image|empty") as refusal:
        file_in(text, is_base64=True)
    assert_sentence(str(refusal.value))
