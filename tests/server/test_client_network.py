"""The clients with servers that are down, busy or broken, or not inference servers."""

import csv
import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client.classify import classify
from client.images import ClientError
from client.local import free_ports
from client.transport import MAX_RETRY_AFTER
from tests.support.client import (
    CLASSIFY,
    METADATA,
    outputs,
    reset,
    respond,
    run,
    scripted,
)
from tests.support.clients import COFFEE, LABEL
from tests.support.http import Answer
from tests.support.paths import ROOT
from tests.support.servers import Serve

ESPRESSO = outputs(["espresso"], [0.9])


def busy(retry_after: str) -> Answer:
    return respond(503, {"error": "Busy."}, Retry_After=retry_after)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds that urllib3 would have slept between attempts."""
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    return slept


@pytest.mark.parametrize(
    ("steps", "retries", "seconds", "error"),
    [
        ([reset, ESPRESSO], 5, [], None),
        ([ESPRESSO], 0, [], None),
        ([reset, ESPRESSO], 0, [], None),
        ([reset, reset], 0, [], "No server answers at "),
        ([busy("1")], 0, [], "Busy."),
        ([busy("3"), ESPRESSO], 5, [3], None),
        ([busy("86400"), ESPRESSO], 5, [MAX_RETRY_AFTER], None),
    ],
)
def test_retries(
    pauses: list[float], steps: list[Answer], retries: int, seconds: list[float], error: str | None
) -> None:
    """A lost connection is retried once even without retries: it may have been an idle one."""
    with scripted(*steps) as url:
        done = run("--encoding", "image", "--retries", retries, "--url", url, COFFEE)
    assert (done.status, "espresso" in done.output) == ((1, False) if error else (0, True))
    assert (error or "") in done.errors
    assert pauses == seconds


def test_busy_server_is_retried(serve: Serve) -> None:
    server = serve(env={"TINYVIT_MAX_QUEUE": "1"})
    options = ["--encoding", "image", "--jobs", 8, "--retries", 20, "--url", server.url]
    done = run("--format", "csv", "-k", 1, *options, *[COFFEE] * 40)
    assert done.status == 0, done.errors
    assert done.output.count(LABEL) == 40
    assert "refused request" in server.output()


SERVER_ERRORS = [
    (respond(500, {"error": "builtins.TypeError: no."}), "builtins.TypeError: no."),
    (respond(500, b"Internal\nServer Error"), "status 500: Internal Server Error"),
    (respond(500, b""), "status 500: Internal Server Error"),
]


@pytest.mark.parametrize(("answer", "text"), SERVER_ERRORS)
def test_errors_of_the_server_are_printed(answer: Answer, text: str) -> None:
    with scripted(answer) as url:
        done = run("--url", url, COFFEE)
    assert (done.status, done.errors) == (1, f"{COFFEE}: {text}\n")
    with scripted(get=answer) as url:
        done = run("--url", url, COFFEE)
    assert (done.status, done.errors) == (1, f"{url}/v2/models/tinyvit is not ready: {text}\n")


NO_CLASSIFIER = "The model does not return labels and scores: name an image classifier."
NO_LABELS, TWO_SCORES = outputs([0.1, 0.9]), outputs(["a"], [0.1, 0.9])
HELLO = respond(200, b"Hello")


@pytest.mark.parametrize(
    ("answer", "get", "text"),
    [
        *[(answer, METADATA, NO_CLASSIFIER) for answer in (NO_LABELS, TWO_SCORES, HELLO)],
        (None, HELLO, "the response is not metadata in JSON."),
        (None, respond(503, {"error": "Loading."}), "is not ready: Loading."),
    ],
)
def test_other_servers(answer: Answer | None, get: Answer, text: str) -> None:
    with scripted(*filter(None, [answer]), get=get) as url:
        done = run("--url", url, COFFEE)
    assert (done.status, done.errors.count("\n")) == (1, 1)
    assert text in done.errors


@pytest.mark.parametrize("option", ["--url", "--grpc"])
def test_server_that_is_down(option: str) -> None:
    (port,) = free_ports(1)
    done = run(option, f"{'http://' if option == '--url' else ''}127.0.0.1:{port}", COFFEE)
    assert (done.status, done.errors.count("\n")) == (1, 1)
    assert re.match("No (gRPC )?server answers at ", done.errors)


def test_function_raises_if_the_server_is_down() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ClientError, match="No server answers"):
        classify(COFFEE, url=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(("way", "jobs"), [("rest", 1), ("grpc", 3)])
def test_server_that_is_killed(serve: Serve, way: str, jobs: int) -> None:
    """Each image has a row, and the client sends no request after the first failure."""
    server = serve()
    address = ["--url", server.url] if way == "rest" else ["--grpc", server.grpc]
    options = ["--format", "csv", "-k", "1", "--encoding", "image", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [*CLASSIFY, *options, *address, *[str(COFFEE)] * 400],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = threading.Timer(60, process.kill)  # 400 timeouts of the client would be half an hour
    limit.start()
    lines = [process.stdout.readline() for _ in range(4)]  # the header and three images
    server.kill()
    output, errors = process.stdout.read(), process.stderr.read()
    assert process.wait() == 1
    limit.cancel()
    rows = list(csv.DictReader(io.StringIO("".join(lines) + output)))
    assert len(rows) == 400
    answered = [row["label"] == LABEL for row in rows]
    assert 3 <= sum(answered) < 400 and answered == sorted(answered, reverse=True)
    assert all("server answers at" in row["error"] for row in rows if not row["label"])
    assert errors.count("\n") == 1 and "server answers at" in errors


def lab_program(monkeypatch: pytest.MonkeyPatch, program: str, url: str, *arguments: object) -> str:
    """Run a program of the lab against this URL and return the sentence that it ends with."""
    code = (ROOT / program).read_text().replace("http://localhost:8080", url)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        file = str(ROOT / program)
        exec(compile(code, program, "exec"), {"__name__": "__main__", "__file__": file})
    assert isinstance(end.value.code, str)
    return end.value.code


ONE_OUTPUT = respond(
    200,
    {
        "model_name": "tinyvit",
        "outputs": [{"name": "output-0", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.9]}],
    },
)
FIRST, NEAREST = "client/first_request.py", "lab/nearest.py"


@pytest.mark.parametrize(
    ("program", "arguments", "steps", "sentence"),
    [
        (FIRST, [], None, r"No answer from http://127.* \(ConnectionError\)"),
        (FIRST, ["nowhere.jpg"], None, "Cannot read the image: .*nowhere.jpg"),
        (FIRST, [__file__], None, "Cannot read the image: cannot identify image file"),
        (FIRST, [], [ONE_OUTPUT], r"The model has one output, output-0: FP32 \[1, 2\]\."),
        (FIRST, [], [respond(500, b"Oh no")], "The server refused the request: 500 Oh no"),
        (NEAREST, [COFFEE], None, r"No answer from http://127.* \(ConnectionError\)"),
        (NEAREST, [], None, "Usage: python lab/nearest.py IMAGE"),
        (NEAREST, ["nowhere.jpg"], None, "Cannot read the image: .*nowhere.jpg"),
        (NEAREST, [COFFEE], [ONE_OUTPUT], "The model returns no embedding but output-0"),
        (NEAREST, [COFFEE], [respond(500, b"Oh no")], "refused the request: 500 Oh no"),
    ],
)
def test_programs_of_the_lab_fail_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    arguments: list[str | Path],
    steps: list[Answer] | None,
    sentence: str,
) -> None:
    """Without steps no server runs."""
    if steps is None:
        (port,) = free_ports(1)
        error = lab_program(monkeypatch, program, f"http://127.0.0.1:{port}", *arguments)
    else:
        with scripted(*steps) as url:
            error = lab_program(monkeypatch, program, url, *arguments)
    assert "\n" not in error and re.search(sentence, error)
    assert capsys.readouterr().out == ""
