"""The metrics count what was sent, and say what they are."""

import requests
from prometheus_client.parser import text_string_to_metric_families

from client.local import LocalServer
from tests.support.background_load import PICTURE
from tests.support.clients import body, classify, infer, measured, message, stub, tensor, text


def test_metrics_count_what_was_sent(either_server: LocalServer) -> None:
    before = measured(either_server)
    assert classify(either_server, PICTURE).ok
    assert infer(either_server, body(tensor([text(PICTURE)] * 3))).ok
    stub(either_server).ModelInfer(message(bytes_contents=[PICTURE]), timeout=20)
    assert classify(either_server, b"no picture").status_code == 400
    assert (
        infer(either_server, body(tensor(PICTURE), id="twice", parameters={"top_k": 0})).status_code
        == 400
    )
    after = measured(either_server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["tinyvit_batch_size_images_sum"] == 5
    assert 3 <= grown["tinyvit_batch_size_images_count"] <= 5
    assert grown["tinyvit_queue_seconds_count"] == 5
    assert grown["tinyvit_decode_seconds_count"] == 5
    assert grown["tinyvit_engine_seconds_count"] == grown["tinyvit_batch_size_images_count"]
    assert grown["tinyvit_queue_length_images_count"] == grown["tinyvit_batch_size_images_count"]
    assert grown["tinyvit_queue_length_images_sum"] >= grown["tinyvit_batch_size_images_sum"]
    assert grown["tinyvit_refused_invalid_requests_count"] == 2
    assert grown.get("tinyvit_refused_busy_requests_count", 0) == 0
    assert grown.get("tinyvit_failed_requests_count", 0) == 0
    assert 0 < grown["tinyvit_decode_seconds_sum"] < 5
    assert 0 < grown["tinyvit_engine_seconds_sum"] < 5


def test_metrics_name_the_model_and_what_they_are(server: LocalServer) -> None:
    assert classify(server, PICTURE).ok
    text = requests.get(server.metrics, timeout=5).text
    ours = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("tinyvit_") and not family.name.endswith("_created")
    ]
    assert ours
    for family in ours:
        assert family.name.endswith(("_seconds", "_images", "_requests"))
        assert family.documentation and "TODO" not in family.documentation
        for sample in family.samples:
            assert sample.labels["model_name"] == "tinyvit"
