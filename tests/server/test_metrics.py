"""The metrics count requests and have descriptions; the log has a line for each refusal."""

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from client.local import LocalServer
from tests.support.app import App
from tests.support.background_load import IMAGE
from tests.support.clients import (
    assert_refused,
    assert_sentence,
    body,
    classify,
    infer,
    message,
    request,
    stub,
    tensor,
    text,
    totals,
)

LOGGER = "mlserver.tinyvit"
HOSTILE = 'quote " backslash \\ and } brace'
BUSY, LATE = "tinyvit_refused_busy_requests_count", "tinyvit_refused_timeout_requests_count"


def counts() -> dict[str, float]:
    return totals(generate_latest(REGISTRY).decode())


def test_metrics_count_requests(app: App) -> None:
    before = counts()
    assert classify(app, IMAGE).status_code == 200
    assert infer(app, body(tensor([text(IMAGE)] * 3))).status_code == 200
    stub(app).ModelInfer(message(bytes_contents=[IMAGE]), timeout=20)
    assert classify(app, b"no image").status_code == 400
    assert infer(app, body(tensor(IMAGE), parameters={"top_k": 0})).status_code == 400
    after = counts()
    grown = {name.removeprefix("tinyvit_"): after[name] - before.get(name, 0) for name in after}
    batches = grown["batch_size_images_count"]
    assert 3 <= batches <= 5
    assert grown["batch_size_images_sum"] == 5
    assert grown["queue_seconds_count"] == grown["decode_seconds_count"] == 5
    assert grown["engine_seconds_count"] == grown["queue_length_images_count"] == batches
    assert grown["queue_length_images_sum"] >= 5
    assert grown["refused_invalid_requests_count"] == 2
    assert grown["refused_busy_requests_count"] == grown["failed_requests_count"] == 0
    assert 0 < grown["decode_seconds_sum"] < 5 and 0 < grown["engine_seconds_sum"] < 5


def test_metrics_have_descriptions(server: LocalServer) -> None:
    assert classify(server, IMAGE).ok
    page = requests.get(server.metrics, timeout=10).text
    families = [
        family
        for family in text_string_to_metric_families(page)
        if family.name.startswith("tinyvit_") and not family.name.endswith("_created")
    ]
    assert families
    for family in families:
        assert family.name.endswith(("_seconds", "_images", "_requests", "_restarts", "_models"))
        assert family.documentation
        of_the_server = family.name in ("tinyvit_decoder_restarts", "tinyvit_loaded_models")
        models = {sample.labels.get("model_name") for sample in family.samples}
        assert models == {None if of_the_server else "tinyvit"}


def test_only_refused_requests_are_logged(app: App, caplog: pytest.LogCaptureFixture) -> None:
    secret = b"no image, but private"
    with caplog.at_level(logging.INFO, LOGGER):
        assert classify(app, IMAGE).status_code == 200
        assert infer(app, body(tensor(IMAGE), id="valid")).status_code == 200
        infer(app, body(tensor(IMAGE), id=HOSTILE, parameters={"top_k": 0}))
        infer(app, body(id="x" * 9))
        classify(app, secret)
    records = [record for record in caplog.records if record.name == LOGGER]
    assert {record.levelname for record in records} == {"WARNING"}
    first, second, third = (record.getMessage() for record in records)
    assert first.startswith(f"refused request {HOSTILE}: 'top_k' must be a whole number from 1 to")
    assert second.startswith("refused request xxxxxxxxx: The model takes exactly one input")
    assert re.match(r"refused request [0-9a-f-]{36}: The bytes are not a supported image", third)
    for content in ("private", text(secret), text(IMAGE)[:64]):
        assert content not in caplog.text


def test_grpc_messages_that_are_refused_unread_are_counted_and_logged(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    before = counts()["tinyvit_refused_invalid_requests_count"]
    wrong = [message([4, 4, 3], "UINT8", raw=[bytes(7)]), message([1], raw=[b"12"])]
    with caplog.at_level(logging.WARNING, LOGGER):
        for each in wrong:
            with pytest.raises(grpc.RpcError):
                stub(app).ModelInfer(each, metadata=[("x-request-id", "mine")], timeout=20)
    assert counts()["tinyvit_refused_invalid_requests_count"] == before + len(wrong)
    assert caplog.text.count("refused request (unread) (mine): ") == len(wrong), caplog.text
    with caplog.at_level(logging.WARNING, LOGGER), pytest.raises(grpc.RpcError):
        stub(app).ModelInfer(
            message(identifier="a", bytes_contents=[b"http://a/b.jpg"]), timeout=20
        )
    assert "refused request a: The image is an address" in caplog.text


def test_busy_and_late_requests_are_refused_counted_and_logged(
    make_app: Callable[..., App], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(TINYVIT_MAX_QUEUE="2", TINYVIT_TIMEOUT="0.0001")
    before = counts()
    with caplog.at_level(logging.INFO, LOGGER), ThreadPoolExecutor(8) as pool:
        late = assert_refused(infer(app, body(tensor(IMAGE), id="late")), 504)
        assert "0.0001" in late
        while counts()[BUSY] == before.get(BUSY, 0):
            responses = list(pool.map(lambda _: classify(app, IMAGE), range(16)))
            assert {response.status_code for response in responses} <= {503, 504}
    for response in responses:
        if response.status_code == 503:
            assert_refused(response, 503)
            assert 1 <= int(response.headers["Retry-After"]) <= 5
    with pytest.raises(grpc.RpcError) as failure:
        stub(app).ModelInfer(message(bytes_contents=[IMAGE]), timeout=30)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_sentence(failure.value.details())
    assert counts()[LATE] > before.get(LATE, 0) + 1
    assert "refused request late: The request was not answered" in caplog.text
    assert "The server is busy" in caplog.text
    assert request(app, "GET", "/v2/health/ready").status_code == 200
