"""With structured logs, each line of the server is a JSON object with a time zone."""

import json
import logging
from datetime import datetime
from pathlib import Path

import grpc
import pytest
import requests

from client.local import LocalServer
from mlserver_timm.errors import SHORT, short
from mlserver_timm.metrics import note_correlation
from mlserver_timm.server.logs import JsonFormatter
from tests.support.app import App
from tests.support.clients import body, infer, message, stub, tensor
from tests.support.probes import OTHER, OURS, Model, code, repository, send
from tests.support.servers import Serve

STRUCTURED = {"MLSERVER_USE_STRUCTURED_LOGGING": "true"}
HOSTILE = 'quote " backslash \\ line\nend'
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def lines(server: LocalServer) -> list[dict[str, str]]:
    """Return the log; each line is an object with a time in UTC, a level and a message."""
    parsed = [json.loads(line) for line in server.output().splitlines()]
    for line in parsed:
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
        assert line["level"] and line["message"] and line["name"]
    return parsed


def test_every_line_is_json(serve: Serve, tmp_path: Path) -> None:
    """From the start to the end: uvicorn's, tracebacks, and access lines of debug mode."""
    server = serve(folder=repository(tmp_path, OURS, OTHER, debug=True), env=STRUCTURED)
    assert send(server, "crash").status_code == 500
    assert code(server, "crash", "other") is grpc.StatusCode.INTERNAL
    assert requests.get(f"{server.url}/v2/models/ours?x={HOSTILE}", timeout=20).ok
    assert server.stop() == 0
    names = {line["name"] for line in lines(server)}
    assert {"mlserver", "mlserver.grpc", "uvicorn.error", "uvicorn.access"} <= names
    assert any("no such kernel" in line.get("exception", "") for line in lines(server))


def test_answered_requests_are_not_logged(serve: Serve, tmp_path: Path) -> None:
    """Unless debug is on, as without structured logs."""
    server = serve(folder=repository(tmp_path, OURS, debug=False), env=STRUCTURED)
    assert send(server, "echo:x").ok and requests.get(server.metrics, timeout=20).ok
    assert server.stop() == 0
    assert "uvicorn.access" not in {line["name"] for line in lines(server)}


def test_reason_of_a_failed_start_is_json(serve: Serve, tmp_path: Path) -> None:
    broken = Model(extra={"load_fails": 'No "weights".'})
    server = serve(folder=repository(tmp_path, broken), env=STRUCTURED, ready=False)
    assert server.process.wait(60) == 1
    assert lines(server)[-1]["message"] == 'The server stops: No "weights".'


def test_formatter_names_the_request() -> None:
    note_correlation({"x-request-id": HOSTILE})
    record = logging.LogRecord("n", logging.INFO, "", 0, "%s", (HOSTILE,), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["request_id"]) == (HOSTILE, short(HOSTILE))
    note_correlation({"x-request-id": "x" * 60_000})
    assert json.loads(JsonFormatter().format(record))["request_id"] == "x" * SHORT
    note_correlation({})
    assert "request_id" not in json.loads(JsonFormatter().format(record))


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ({"X-Request-Id": "from-nginx", "traceparent": TRACE}, "from-nginx"),
        ({"traceparent": TRACE}, TRACE),
        ({"X-Request-Id": "x" * 5000}, "x" * 80),
    ],
)
def test_refusal_names_the_request(
    app: App, caplog: pytest.LogCaptureFixture, headers: dict[str, str], shown: str
) -> None:
    """Over REST and gRPC; the next request does not inherit it."""
    asked = body(tensor(b"no image"), id="mine")
    assert infer(app, asked, headers=headers).status_code == 400
    metadata = [(name.lower(), value) for name, value in headers.items()]
    with pytest.raises(grpc.RpcError):
        stub(app).ModelInfer(
            message(identifier="mine", bytes_contents=[b"no image"]), metadata=metadata, timeout=20
        )
    assert infer(app, asked).status_code == 400
    refused = [r.getMessage() for r in caplog.records if "refused request" in r.getMessage()]
    assert [line.split(":")[0] for line in refused] == [
        f"refused request mine ({shown})",
        f"refused request mine ({shown})",
        "refused request mine",
    ]


def test_refused_id_is_not_logged_in_full(app: App, caplog: pytest.LogCaptureFixture) -> None:
    huge = "i" * 2 * 2**20
    with pytest.raises(grpc.RpcError) as error:
        stub(app).ModelInfer(message(identifier=huge, bytes_contents=[b"x"]), timeout=20)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "refused request iii" in caplog.text
    assert "i" * 201 not in caplog.text
