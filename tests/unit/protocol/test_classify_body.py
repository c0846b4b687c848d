"""Bodies of /classify: files, forms and Hugging Face's JSON."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.protocol.classify_body import read_classify
from mlserver_timm.protocol.forms import MAX_PARTS
from mlserver_timm.protocol.request import (
    ClassificationRequest,
    classification_request,
)
from tests.support.clients import assert_sentence, body, image_file, tensor, text
from tests.support.fuzz_targets import NETWORK_OUTPUTS
from tests.support.refusals import GOOD

FORM_TYPE = "multipart/form-data; boundary=b"


def classify(data: bytes, content_type: str = "") -> ClassificationRequest:
    request = read_classify(data, content_type)
    return classification_request(request, NETWORK_OUTPUTS)


def refusal(data: bytes, content_type: str = "") -> str:
    with pytest.raises((InvalidRequest, InvalidImage)) as error:
        classify(data, content_type)
    assert_sentence(str(error.value))
    return str(error.value)


def part(name: str, content: bytes, filename: str | None = None, kind: str = "") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += "" if filename is None else f'; filename="{filename}"'
    headers = disposition + (f"\r\nContent-Type: {kind}" if kind else "")
    return b"--b\r\n%b\r\n\r\n%b\r\n" % (headers.encode(), content)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


# --- Files and JSON ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("content_type", ["", "application/json"])
def test_a_file_whatever_the_content_type(kind: str, content_type: str) -> None:
    data = image_file(kind)
    assert classify(data, content_type).images == [data]


@pytest.mark.parametrize("before", ["", "data:image/png;base64,"])
def test_base64_in_place_of_the_file(before: str) -> None:
    encoded = before + text(GOOD)
    for data, content_type in (
        (encoded.encode(), ""),
        (json.dumps({"inputs": encoded}).encode(), "application/json"),
        (b'\xef\xbb\xbf\n {"inputs": "%b"}' % encoded.encode(), ""),
        (form(part("f", encoded.encode(), "x.png")), FORM_TYPE),
    ):
        assert classify(data, content_type).images == [GOOD]


def test_parameters_in_json() -> None:
    parameters = {"top_k": 2, "function_to_apply": "none", "other": None}
    request = classify(json.dumps({"inputs": text(GOOD), "parameters": parameters}).encode())
    assert (request.top_k, request.function) == (2, "none")


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("tensors go to /infer", {}),
        ("tensors go to /infer", {"inputs": None}),
        ("tensors go to /infer", {"inputs": [text(GOOD)]}),
        ("tensors go to /infer", {"inputs": {"image": "x"}}),
        ("tensors go to /infer", body(tensor(GOOD))),
        ("empty", {"inputs": ""}),
        ("empty", {"inputs": "data:image/png;base64,"}),
        ("not valid base64", {"inputs": "!!!"}),
        ("nothing is fetched", {"inputs": "https://example.org/cat.jpg"}),
        ("nothing is fetched", {"inputs": "/etc/passwd.txt"}),
        ("parameters: Expected a JSON object", {"inputs": text(GOOD), "parameters": []}),
        ("whole number", {"inputs": text(GOOD), "parameters": {"top_k": 0}}),
        ("parameters.top_k: expected text", {"inputs": text(GOOD), "parameters": {"top_k": [3]}}),
        ("softmax", {"inputs": text(GOOD), "parameters": {"function_to_apply": "tanh"}}),
        ("it is called 'top_k'", {"inputs": text(GOOD), "parameters": {"topk": 3}}),
        ("'top_k' belongs in", {"inputs": text(GOOD), "top_k": 3}),
    ],
)
def test_refused_json(reason: str, content: Any) -> None:
    assert reason in refusal(json.dumps(content).encode())


def test_broken_json() -> None:
    for data in (b"{", b'{"inputs": "\xff"}', b'{"x":' + b"[" * 5000):
        assert "not valid JSON" in refusal(data)


def test_bytes_that_curl_d_strips() -> None:
    kind = "application/x-www-form-urlencoded"
    stripped = GOOD.replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b"")
    assert "--data-binary" in refusal(stripped, kind)
    assert classify(GOOD, kind).images == [GOOD]
    assert classify(stripped, "image/png").images == [stripped]


# --- Forms ------------------------------------------------------------------------------------


@given(
    st.lists(
        st.binary(min_size=1, max_size=30).map(lambda data: b"\xff" + data)
        | st.sampled_from(
            [b"\xff\r\n--b", b"\xff\r\n--", b"\xff\r\n--bb--", b"\xff--b--", b"\xff\r"]
        ),
        min_size=1,
        max_size=4,
    )
)
def test_files_in_a_form(files: list[bytes]) -> None:
    """In order, with any content but the boundary itself."""
    kept = [file for file in files if b"\r\n--b" not in file or file.endswith(b"--bb--")]
    data = form(*[part(f"f{i}", file, "x") for i, file in enumerate(kept)])
    if kept:
        assert classify(data, FORM_TYPE).images == kept


def test_fields_in_a_form() -> None:
    """Known fields count, others are ignored; some clients send a type with each."""
    for kind in ("", "text/plain; charset=utf-8", "application/json"):
        data = form(
            part("csrf", b"x", kind=kind), part("f", GOOD, "x"), part("top_k", b"2", kind=kind)
        )
        request = classify(data, FORM_TYPE)
        assert request.images == [GOOD]
        assert request.top_k == 2


def test_a_data_url_in_a_text_field_is_an_image() -> None:
    url = b"data:image/png;base64," + base64.b64encode(GOOD)
    request = classify(form(part("image", url), part("top_k", b"1")), FORM_TYPE)
    assert request.images == [GOOD]


@pytest.mark.parametrize(
    "headers",
    [
        'Content-Disposition: form-data; name="f"; filename="x"',
        "content-disposition: form-data; name=f; filename=x",
        "Content-Disposition: form-data; name=f\r\nContent-Type: image/png",
        "Content-Disposition: form-data; name=f; filename*=utf-8''%E2%82%AC.png",
        'X-Other: 1\r\nContent-Disposition: form-data; filename="a;b\\"c.png"; name="f"',
        "Content-Type: application/octet-stream",
    ],
)
def test_headers_of_a_file(headers: str) -> None:
    data = b"--b\r\n%b\r\n\r\n%b\r\n--b--" % (headers.encode(), GOOD)
    assert classify(data, FORM_TYPE).images == [GOOD]


def test_a_file_field_without_a_file() -> None:
    empty = part("more", b"", "", "application/octet-stream")
    assert classify(form(empty, part("f", GOOD, "x")), FORM_TYPE).images == [GOOD]
    assert "no file" in refusal(form(empty), FORM_TYPE)


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("multipart/form-data; boundary=b", b"before\r\n" + form(part("f", GOOD, "x")) + b"after"),
        ('Multipart/Form-Data; Boundary="b"', form(part("f", GOOD, "x"))),
        ("multipart/form-data; boundary=b; charset=utf-8", form(part("f", GOOD, "x"))),
        (FORM_TYPE, form(part("f", GOOD, "x")).replace(b"--b\r\n", b"--b \t\r\n", 1)),
    ],
)
def test_unusual_forms(content_type: str, data: bytes) -> None:
    """RFC 2046 allows text before and after, spaces behind a boundary, quotes around it."""
    assert classify(data, content_type).images == [GOOD]


WHOLE = form(part("f", GOOD, "x"))
TOO_MANY = form(*[part("f", b"", "x")] * (MAX_PARTS + 1))


@pytest.mark.parametrize(
    ("reason", "content_type", "data"),
    [
        ("not valid", FORM_TYPE, b""),
        ("no file", FORM_TYPE, b"--b--"),
        ("not valid", FORM_TYPE, WHOLE[:-8]),
        ("not valid", FORM_TYPE, WHOLE.replace(b"\r\n\r\n", b"\r\n", 1)),
        ("not valid", "multipart/form-data; boundary=c", WHOLE),
        ("not valid", FORM_TYPE, WHOLE.replace(b"--b\r\n", b"--b" + b" " * 99 + b"\r\n", 1)),
        ("not valid", FORM_TYPE, part("f", GOOD, "x", "x" * 9000) + b"--b--"),
        ("not valid", FORM_TYPE, b"--b\r\n" + b"a: b\r\n" * 99 + b"\r\n\r\n--b--"),
        ("no file", FORM_TYPE, form(part("f", GOOD))),
        ("empty", FORM_TYPE, form(part("f", b"", "x"))),
        ("empty", FORM_TYPE, form(part("f", b"", kind="image/png"))),
        ("more than 1024 parts", FORM_TYPE, TOO_MANY),
        ("field of its own", FORM_TYPE, form(part("f", b"x", kind="multipart/mixed; boundary=c"))),
        ("state its boundary", "multipart/form-data", WHOLE),
        ("state its boundary", "multipart/form-data; boundary=", WHOLE),
        ("state its boundary", f'multipart/form-data; boundary="{"b" * 100}"', WHOLE),
        ("it is called 'top_k'", FORM_TYPE, form(part("f", GOOD, "x"), part("topk", b"2"))),
        ("more than 64 parameters", FORM_TYPE, form(part("f" + '";' * 65, GOOD, "x"))),
        ("more than 64 parameters", FORM_TYPE, form(part("f", GOOD, "x", "text/plain" + ";" * 65))),
        ("more than 64 parameters", FORM_TYPE + ";" * 65, WHOLE),
    ],
)
def test_refused_forms(reason: str, content_type: str, data: bytes) -> None:
    assert reason in refusal(data, content_type)


def test_the_limit_of_parts() -> None:
    data = form(*[part("f", GOOD, "x")] * MAX_PARTS)
    assert len(classify(data, FORM_TYPE).images) == MAX_PARTS
