"""Ways into /classify: a file, a form, Hugging Face's JSON; and hints for what nearly is one."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from huggingface_hub import InferenceClient

from client.local import LocalServer
from tests.support.clients import COFFEE, LABEL, assert_refused, body, classify, infer, tensor, text
from tests.support.paths import ROOT
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
CAT = ROOT / "imgs/cat.jpg"


def url(server: LocalServer, query: str = "") -> str:
    return f"{server.url}/v2/models/tinyvit/classify{query}"


def post_json(server: LocalServer, request: Any, query: str = "") -> requests.Response:
    return requests.post(url(server, query), json=request, timeout=60)


def curl(*arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


# --- Forms ------------------------------------------------------------------------------------


def test_one_file_in_a_form(either_server: LocalServer) -> None:
    answer = requests.post(url(either_server), files={"file": FILE}, timeout=60)
    assert answer.json() == classify(either_server, FILE).json()


def test_several_files_in_a_form(either_server: LocalServer) -> None:
    """A list for each, in their order, whatever their fields are called."""
    files = [("a", ("coffee.jpg", FILE)), ("a", ("x", GOOD)), ("b", ("cat.jpg", CAT.read_bytes()))]
    answer = requests.post(url(either_server), files=files, timeout=60)
    assert answer.json() == [classify(either_server, file).json() for _, (_, file) in files]


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=utf-8", "application/json"])
def test_fields_with_a_type_are_fields(server: LocalServer, kind: str) -> None:
    """As Java's, .NET's and aiohttp's forms have them."""
    files = {"file": ("cat.jpg", FILE), "top_k": (None, "2", kind)}
    answer = requests.post(url(server), files=files, timeout=60)
    assert answer.json() == classify(server, FILE, params={"top_k": 2}).json()


def test_a_field_without_its_file(server: LocalServer) -> None:
    """What a browser sends where none was chosen is passed over."""
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n'
    empty = part % (b"more", b"") + b"Content-Type: application/octet-stream\r\n\r\n\r\n"
    whole = empty + part % (b"one", b"x") + b"\r\n" + FILE + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(url(server), whole, headers=headers, timeout=60)
    assert answer.json() == classify(server, FILE).json()
    refusal = requests.post(url(server), empty + b"--b--\r\n", headers=headers, timeout=60)
    assert "no file" in assert_refused(refusal)


def test_a_form_within_the_form(server: LocalServer) -> None:
    """curl's own way of several files."""
    refusal = json.loads(curl("-F", f"a=@{COFFEE},{CAT}", url(server)))
    assert "field of its own" in refusal["error"]


def test_parameters_in_a_form(server: LocalServer) -> None:
    """As fields; others than ours are passed over."""
    answer = requests.post(
        url(server, "?top_k=4"),
        files={"file": FILE},
        data={"top_k": "2", "csrf": "x"},
        timeout=60,
    )
    assert answer.json() == classify(server, FILE, params={"top_k": 2}).json()


def test_curl(server: LocalServer) -> None:
    expected = classify(server, FILE).text
    assert curl("-F", f"file=@{COFFEE}", url(server)) == expected
    assert curl("--data-binary", f"@{COFFEE}", url(server)) == expected
    assert curl("-X", "POST", "-T", str(COFFEE), url(server)) == expected
    assert (
        curl("-F", f"file=@{COFFEE};type=image/jpeg", "-F", "top_k=1", url(server)).count("label")
        == 1
    )


def test_hints_for_curl(server: LocalServer) -> None:
    assert "--data-binary" in curl("-d", f"@{COFFEE}", url(server))
    assert "-X POST -T" in curl("-T", str(COFFEE), url(server))
    assert requests.put(url(server), data=FILE, timeout=60).headers["Allow"] == "POST"


def test_no_hint_where_it_would_be_wrong(server: LocalServer) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    whole = classify(server, FILE[:2000], headers=headers)
    assert "--data-binary" not in assert_refused(whole)
    assert classify(server, FILE, headers=headers).status_code == 200


FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n%b\r\n--b--\r\n'


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
def test_bad_forms(either_server: LocalServer, boundary: str, data: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data" + boundary}
    assert_refused(classify(either_server, data, headers=headers))


def test_unusual_forms(server: LocalServer) -> None:
    """What RFC 2046 allows: text before and after, spaces behind a boundary, quotes around it."""
    expected = classify(server, GOOD).json()
    for boundary, data in (
        ("b", b"before\r\n" + FORM % GOOD + b"after"),
        ('"b"', FORM % GOOD),
        ("b; charset=utf-8", FORM.replace(b"--b\r\n", b"--b  \r\n") % GOOD),
    ):
        headers = {"Content-Type": f"Multipart/Form-Data; Boundary={boundary}"}
        assert classify(server, data, headers=headers).json() == expected


def test_too_many_files(server: LocalServer) -> None:
    files = [("f", ("x", GOOD))] * 65
    assert "65 images" in assert_refused(requests.post(url(server), files=files, timeout=60))


# --- Hugging Face's JSON ----------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "data:image/jpeg;base64,", "DATA:;base64,"])
def test_json(either_server: LocalServer, before: str) -> None:
    answer = post_json(either_server, {"inputs": before + text(FILE)})
    assert answer.json() == classify(either_server, FILE).json()


def test_json_without_its_content_type(server: LocalServer) -> None:
    data = b'\n {"inputs": "%b"}' % base64.b64encode(FILE)
    assert classify(server, data).json() == classify(server, FILE).json()


def test_a_file_with_the_wrong_content_type(server: LocalServer) -> None:
    answer = classify(server, FILE, headers={"Content-Type": "application/json"})
    assert answer.json() == classify(server, FILE).json()


def test_functions(either_server: LocalServer) -> None:
    """Scores are made from the logits as asked; the order of the labels is the same."""
    request = body(tensor(FILE), outputs=[{"name": "logits"}])
    logits = np.array(infer(either_server, request).json()["outputs"][0]["data"])
    best = np.sort(logits)[::-1][:3]
    expected = {
        "softmax": np.exp(best) / np.exp(logits).sum(),
        "sigmoid": 1 / (1 + np.exp(-best)),
        "none": best,
    }
    for function, scores in expected.items():
        parameters = {"top_k": 3, "function_to_apply": function}
        answer = post_json(either_server, {"inputs": text(FILE), "parameters": parameters}).json()
        np.testing.assert_allclose([one["score"] for one in answer], scores, rtol=1e-4)
        assert answer[0]["label"] == LABEL
        query = classify(either_server, FILE, params=parameters).json()
        assert query == answer
        form = requests.post(url(either_server), files={"f": FILE}, data=parameters, timeout=60)
        assert form.json() == answer


def test_functions_on_infer(server: LocalServer) -> None:
    request = body(tensor(FILE), parameters={"function_to_apply": "none"})
    scores = infer(server, request).json()["outputs"][1]["data"]
    assert (
        scores[0] == classify(server, FILE, params={"function_to_apply": "none"}).json()[0]["score"]
    )


@pytest.mark.parametrize(
    "request_body",
    [
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
        body(tensor(FILE)),
    ],
)
def test_bad_json(either_server: LocalServer, request_body: Any) -> None:
    assert_refused(post_json(either_server, request_body))


def test_tensors_go_to_infer(server: LocalServer) -> None:
    assert "/infer" in assert_refused(post_json(server, body(tensor(FILE))))


# --- huggingface_hub --------------------------------------------------------------------------


@pytest.fixture
def hub(either_server: LocalServer) -> InferenceClient:
    return InferenceClient(url(either_server))


def as_bytes(picture: Path) -> bytes:
    return picture.read_bytes()


@pytest.mark.parametrize("kind", [str, Path, as_bytes])
def test_image_classification(either_server: LocalServer, hub: InferenceClient, kind: Any) -> None:
    got = hub.image_classification(kind(COFFEE), top_k=3)
    expected = classify(either_server, FILE, params={"top_k": 3}).json()
    assert [{"label": one.label, "score": one.score} for one in got] == expected


def test_defaults_and_functions(hub: InferenceClient) -> None:
    assert len(hub.image_classification(FILE)) == 5
    [one] = hub.image_classification(FILE, top_k=1, function_to_apply="none")
    assert one.label == LABEL and one.score > 1
