"""Ways into /classify: a file, a form, Hugging Face's JSON; and hints for near misses.

tests/unit/protocol/test_classify_body.py has all forms and refusals.
"""

import json
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
from tests.support.programs import output_of
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
PATH = "/v2/models/tinyvit/classify"


def post(app: App, **options: Any) -> Any:
    return request(app, "POST", PATH, **options)


def ranking(app: App, file: bytes = FILE, **params: Any) -> Any:
    """Return the answer for the file as the body."""
    return classify(app, file, params=params).json()


def curl(*arguments: str) -> str:
    return output_of("curl", "--silent", "--show-error", *arguments, timeout=60)


def test_several_files_get_a_list_each_in_order(app: App) -> None:
    files = [("a", ("coffee.jpg", FILE)), ("a", ("x", GOOD)), ("b", ("cat.jpg", CAT.read_bytes()))]
    expected = [ranking(app, file) for _, (_, file) in files]
    assert post(app, files=files).json() == expected
    assert "65 images" in assert_refused(post(app, files=[("f", ("x", GOOD))] * 65))


def test_fields_override_the_url_and_unknown_ones_are_ignored(app: App) -> None:
    fields = {"top_k": "2", "function_to_apply": "none", "csrf": "x"}
    response = post(app, params={"top_k": 4}, files={"file": FILE}, data=fields)
    assert response.json() == ranking(app, top_k=2, function_to_apply="none")


def test_hugging_faces_json(app: App) -> None:
    parameters = {"top_k": 3, "function_to_apply": "sigmoid"}
    response = post(app, json={"inputs": text(FILE), "parameters": parameters})
    assert response.json() == ranking(app, **parameters)
    url = "DATA:;base64," + text(FILE)
    assert classify(app, b'\n {"inputs": "%b"}' % url.encode()).json() == ranking(app)
    assert "/infer" in assert_refused(post(app, json=body(tensor(FILE))))


@pytest.mark.parametrize("top_k", ["0", "true", "2.5", ""])
def test_invalid_top_k(app: App, top_k: str) -> None:
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
