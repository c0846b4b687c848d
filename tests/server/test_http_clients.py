"""HTTP clients of other languages get the answers that Python's clients get."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.local import LocalServer
from tests.support.browser import Page
from tests.support.clients import COFFEE, classify
from tests.support.programs import output_of

PROGRAMS = Path(__file__).parent / "http_clients"
ROUTE = "/v2/models/tinyvit/classify"

CURL = ["curl", "-sS", "-w", " %{http_code}", "--data-binary", f"@{COFFEE}"]

FETCH = """
const done = arguments[arguments.length - 1];
const send = async (body, options) => {
  const response = await fetch("v2/models/tinyvit/classify", { method: "POST", body, ...options });
  return [response.status, await response.json()];
};
(async () => {
  const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
  const file = new File([bytes], "coffee.jpg", { type: "image/jpeg" });
  const form = new FormData();
  form.append("file", file);
  return [await send(bytes), await send(file), await send(form)];
})().then(done, (error) => done(String(error)));
"""

pytestmark = pytest.mark.slow


def run(command: Sequence[str], folder: Path) -> list[str]:
    """Return the lines that a program prints."""
    environment = {**os.environ, "HOME": str(folder), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    return output_of(*command, env=environment, timeout=300).strip().splitlines()


@pytest.mark.parametrize(
    "command",
    [["java", str(PROGRAMS / "Post.java")], ["go", "run", str(PROGRAMS / "post.go")]],
    ids=["java", "go"],
)
def test_clients_of_other_languages(
    command: list[str], server: LocalServer, tmp_path: Path
) -> None:
    expected = classify(server, COFFEE.read_bytes()).json()
    lines = run([*command, server.url + ROUTE, str(COFFEE)], tmp_path)
    assert len(lines) == 2, lines
    for line in lines:
        status, _, answer = line.partition(" ")
        assert status == "200" and json.loads(answer) == expected


@pytest.mark.parametrize(
    "options",
    [
        ["--http1.0"],
        ["--http1.1"],
        ["--http2"],
        ["--http1.1", "-H", "Transfer-Encoding: chunked"],
        ["--http2", "-H", "Expect: 100-continue"],
    ],
    ids=" ".join,
)
def test_curl_in_each_version_of_http(
    options: list[str], server: LocalServer, tmp_path: Path
) -> None:
    expected = classify(server, COFFEE.read_bytes()).json()
    [line] = run([*CURL, *options, server.url + ROUTE], tmp_path)
    answer, _, status = line.rpartition(" ")
    assert status == "200" and json.loads(answer) == expected


def test_fetch_in_a_browser(server: LocalServer, blank: Page) -> None:
    """Bytes, a File and FormData, from the server's own page."""
    expected = classify(server, COFFEE.read_bytes()).json()
    blank.driver.get(server.url + "/")
    content = base64.b64encode(COFFEE.read_bytes()).decode()
    answers: Any = blank.driver.execute_async_script(FETCH, content)
    assert answers == [[200, expected]] * 3
