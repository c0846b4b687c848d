"""Ways into /classify: a file, a form, Hugging Face's JSON; and hints for what nearly is one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from client.local import LocalServer
from tests.support.app import App
from tests.support.clients import (
    CAT,
    COFFEE,
    LABEL,
    assert_refused,
    body,
    classify,
    request,
    tensor,
    text,
)
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
PATH = "/v2/models/tinyvit/classify"
FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n%b\r\n--b--\r\n'


def post(app: App, **options: Any) -> Any:
    return request(app, "POST", PATH, **options)


def ranking(app: App, file: bytes = FILE, **params: Any) -> Any:
    """Return the answer for the file as the body."""
    return classify(app, file, params=params).json()


def curl(*arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


# --- Forms ------------------------------------------------------------------------------------


def test_one_file_in_a_form_is_answered_as_the_body(app: App) -> None:
    assert post(app, files={"file": FILE}).json() == ranking(app)


def test_several_files_get_a_list_each_in_order(app: App) -> None:
    files = [("a", ("coffee.jpg", FILE)), ("a", ("x", GOOD)), ("b", ("cat.jpg", CAT.read_bytes()))]
    expected = [ranking(app, file) for _, (_, file) in files]
    assert post(app, files=files).json() == expected


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=utf-8", "application/json"])
def test_fields_with_a_content_type_are_fields(app: App, kind: str) -> None:
    """The forms of Java, .NET and aiohttp give fields one."""
    files = {"file": ("cat.jpg", FILE), "top_k": (None, "2", kind)}
    assert post(app, files=files).json() == ranking(app, top_k=2)


def test_fields_override_the_url_and_unknown_ones_are_ignored(app: App) -> None:
    fields = {"top_k": "2", "function_to_apply": "none", "csrf": "x"}
    response = post(app, params={"top_k": 4}, files={"file": FILE}, data=fields)
    assert response.json() == ranking(app, top_k=2, function_to_apply="none")


def test_a_file_field_without_a_file_is_ignored(app: App) -> None:
    """A browser sends it if the user chose none."""
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n'
    empty = part % (b"more", b"") + b"Content-Type: application/octet-stream\r\n\r\n\r\n"
    whole = empty + part % (b"one", b"x") + b"\r\n" + FILE + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert classify(app, whole, headers=headers).json() == ranking(app)
    assert "no file" in assert_refused(classify(app, empty + b"--b--\r\n", headers=headers))


@pytest.mark.parametrize(
    ("boundary", "data"),
    [
        ("b", b"before\r\n" + FORM % GOOD + b"after"),
        ('"b"', FORM % GOOD),
        ("b; charset=utf-8", FORM.replace(b"--b\r\n", b"--b  \r\n") % GOOD),
    ],
)
def test_unusual_forms_of_rfc_2046(app: App, boundary: str, data: bytes) -> None:
    headers = {"Content-Type": f"Multipart/Form-Data; Boundary={boundary}"}
    assert classify(app, data, headers=headers).json() == ranking(app, GOOD)


@pytest.mark.parametrize(
    ("boundary", "data"),
    [
        ("; boundary=b", b""),
        ("; boundary=b", b"--b--"),
        ("; boundary=b", FORM[:-8] % GOOD),
        ("; boundary=b", FORM.replace(b"\r\n\r\n", b"\r\n") % b"x"),
        ("; boundary=c", FORM % GOOD),
        ("; boundary=b", FORM.replace(b"filename", b"value") % GOOD),
        ("; boundary=b", FORM % b"hello"),
        ("; boundary=b", FORM % b""),
        ("", FORM % GOOD),
        ("; boundary=", FORM % GOOD),
        ('; boundary="' + "b" * 100 + '"', FORM % GOOD),
    ],
)
def test_bad_form(app: App, boundary: str, data: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data" + boundary}
    assert_refused(classify(app, data, headers=headers))


def test_too_many_files(app: App) -> None:
    assert "65 images" in assert_refused(post(app, files=[("f", ("x", GOOD))] * 65))


# --- Hugging Face's JSON ----------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,", "DATA:;base64,"])
def test_json(app: App, prefix: str) -> None:
    assert post(app, json={"inputs": prefix + text(FILE)}).json() == ranking(app)


def test_json_without_its_content_type(app: App) -> None:
    assert classify(app, b'\n {"inputs": "%b"}' % text(FILE).encode()).json() == ranking(app)


def test_a_file_with_the_content_type_of_json(app: App) -> None:
    headers = {"Content-Type": "application/json"}
    assert classify(app, FILE, headers=headers).json() == ranking(app)


@pytest.mark.parametrize("prefix", [b"", b"data:image/jpeg;base64,"])
def test_base64_in_place_of_the_file(app: App, prefix: bytes) -> None:
    data = prefix + text(FILE).encode()
    assert classify(app, data).json() == ranking(app)
    assert post(app, files={"a": data}).json() == ranking(app)


def test_parameters_in_json(app: App) -> None:
    parameters = {"top_k": 3, "function_to_apply": "sigmoid"}
    response = post(app, json={"inputs": text(FILE), "parameters": parameters})
    assert response.json() == ranking(app, **parameters)


BAD_JSON: list[Any] = [
    {},
    {"inputs": None},
    {"inputs": 5},
    {"inputs": []},
    {"inputs": {"image": "x"}},
    {"inputs": ""},
    {"inputs": "!!!"},
    {"inputs": "https://example.org/cat.jpg"},
    {"inputs": "/etc/passwd"},
    {"inputs": "data:image/png;base64,"},
    {"inputs": text(b"hello")},
    {"inputs": text(GOOD), "parameters": []},
    {"inputs": text(GOOD), "parameters": {"top_k": 0}},
    {"inputs": text(GOOD), "parameters": {"top_k": [3]}},
    {"inputs": text(GOOD), "parameters": {"function_to_apply": "tanh"}},
    {"inputs": text(GOOD), "parameters": {"function_to_apply": 5}},
    {"inputs": text(GOOD), "parameters": {"topk": 3}},
]


@pytest.mark.parametrize("content", BAD_JSON)
def test_bad_json(app: App, content: Any) -> None:
    assert_refused(post(app, json=content))


def test_tensors_belong_to_infer(app: App) -> None:
    assert "/infer" in assert_refused(post(app, json=body(tensor(FILE))))


@pytest.mark.parametrize("top_k", ["0", "-1", "1001", "1000000000", "true", "x", "2.5", ""])
def test_bad_top_k(app: App, top_k: str) -> None:
    assert "1 to 1000" in assert_refused(classify(app, GOOD, params={"top_k": top_k}))


# --- Other people's clients, on a real server -------------------------------------------------


def test_curl(server: LocalServer) -> None:
    url, expected = server.url + PATH, classify(server, FILE).text
    assert curl("-F", f"file=@{COFFEE}", url) == expected
    assert curl("--data-binary", f"@{COFFEE}", url) == expected
    assert curl("-X", "POST", "-T", str(COFFEE), url) == expected
    form = curl("-F", f"file=@{COFFEE};type=image/jpeg", "-F", "top_k=1", url)
    assert json.loads(form) == json.loads(expected)[:1]


def test_hints_for_curl(server: LocalServer) -> None:
    url = server.url + PATH
    assert "--data-binary" in curl("-d", f"@{COFFEE}", url)
    assert "-X POST -T" in curl("-T", str(COFFEE), url)
    assert request(server, "PUT", PATH, data=FILE).headers["Allow"] == "POST"
    refusal = json.loads(curl("-F", f"a=@{COFFEE},{CAT}", url))
    assert "field of its own" in refusal["error"]


def test_no_hint_for_a_file_that_curl_did_not_damage(app: App) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    truncated = classify(app, FILE[:2000], headers=headers)
    assert "--data-binary" not in assert_refused(truncated)
    assert classify(app, FILE, headers=headers).status_code == 200


@pytest.mark.parametrize("convert", [str, Path, Path.read_bytes])
def test_hugging_faces_client(server: LocalServer, convert: Any) -> None:
    client = InferenceClient(server.url + PATH)
    guesses = client.image_classification(convert(COFFEE), top_k=3)
    expected = classify(server, FILE, params={"top_k": 3}).json()
    assert [{"label": one.label, "score": one.score} for one in guesses] == expected
    assert len(client.image_classification(convert(COFFEE))) == 5
    (guess,) = client.image_classification(convert(COFFEE), top_k=1, function_to_apply="none")
    assert guess.label == LABEL and guess.score > 1, "a logit"
