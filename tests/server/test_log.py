"""A log line for each refused request, and none for good ones."""

import base64
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.local import LocalServer, serving
from tests.support.background_load import PICTURE
from tests.support.clients import body, classify, infer, measured, tensor, until
from tests.support.servers import Serve, settings


def lines(server: LocalServer) -> list[str]:
    return [line for line in server.output().splitlines() if line.strip()]


def test_one_json_line_for_each_refused_request_and_none_for_good_ones(
    environment: Mapping[str, str], tmp_path: Path, workers: int
) -> None:
    folder = settings(tmp_path, workers)
    variables = {**environment, "MLSERVER_USE_STRUCTURED_LOGGING": "true"}
    variables["MLSERVER_METRICS_DIR"] = str(tmp_path / "metrics")
    hostile = 'quote " backslash \\ and } brace'
    secret = b"not a picture, but private"
    with serving(folder, env=variables, log=tmp_path / "log", cwd=tmp_path) as server:
        started = len(lines(server))
        for _ in range(3):
            assert classify(server, PICTURE).ok
        assert infer(server, body(tensor(PICTURE), id="good")).ok
        assert lines(server)[started:] == []
        assert (
            infer(server, body(tensor(PICTURE), id=hostile, parameters={"top_k": 0})).status_code
            == 400
        )
        assert infer(server, body(id="x" * 9)).status_code == 400
        assert classify(server, secret).status_code == 400
        until(lambda: len(lines(server)) >= started + 3, 10)
        refused = [json.loads(line) for line in lines(server)[started:]]
    assert len(refused) == 3
    assert {line["level"] for line in refused} == {"WARNING"}
    assert {line["name"] for line in refused} == {"mlserver.tinyvit"}
    assert all(line["time"] for line in refused)
    messages = [line["message"] for line in refused]
    assert messages[0] == (
        f"refused request {hostile}: 'top_k' must be a whole number from 1 to 1000."
    )
    assert messages[1].startswith("refused request xxxxxxxxx: The model takes exactly one input")
    assert re.match(r"refused request [0-9a-f-]{36}: The bytes are no image", messages[2])
    written = server.output()
    for trace in (
        "private",
        base64.b64encode(secret).decode(),
        base64.b64encode(PICTURE).decode()[:64],
    ):
        assert trace not in written


@pytest.fixture(params=[0, 1], ids=["in-process", "worker"])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def test_a_full_queue_and_a_time_out_have_their_lines(serve: Serve) -> None:
    server = serve(
        env={
            "MLSERVER_USE_STRUCTURED_LOGGING": "true",
            "TINYVIT_MAX_QUEUE": "1",
            "TINYVIT_TIMEOUT": "0.0001",
        }
    )
    assert infer(server, body(tensor(PICTURE), id="late")).status_code == 504
    statuses = set()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            statuses |= {
                answer.status_code
                for answer in pool.map(lambda _: classify(server, PICTURE), range(16))
            }
            if 503 in statuses:
                break
    assert 503 in statuses
    found = [json.loads(line) for line in lines(server) if "refused request" in line]
    texts = [line["message"] for line in found]
    assert any(text.startswith("refused request late: The request was not ans") for text in texts)
    assert any("The server is busy" in text for text in texts)
    counts = measured(server)
    assert counts["tinyvit_refused_timeout_requests_count"] >= 1
    assert counts["tinyvit_refused_busy_requests_count"] >= 1
