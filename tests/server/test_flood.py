"""More than can be served: refusals are told as such, and those taken in are served."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests

from client.local import LocalServer
from tests.support.background_load import MEGABYTE, PICTURE, ROUTES, Load, altered, is_ready
from tests.support.clients import (
    LABEL,
    assert_refused,
    assert_sane,
    assert_sentence,
    classify,
    infer,
    measured,
    message,
    resident,
    stub,
    until,
)
from tests.support.servers import Serve, settings as copy_with_workers


@pytest.mark.exclusive
@pytest.mark.parametrize("count", [0, 1])
def test_flood(serve_workers: Callable[..., LocalServer], count: int) -> None:
    """Refusals are told as such, over REST and gRPC, and whoever was taken in is served rightly."""
    server = serve_workers(count, env={"TINYVIT_MAX_QUEUE": "3"})
    assert_sane(server)
    codes: Counter[str] = Counter()
    one = stub(server)

    def ask_grpc() -> None:
        while not ended.is_set():
            try:
                answer = one.ModelInfer(message(bytes_contents=[PICTURE]), timeout=60)
                right = answer.outputs[0].contents.bytes_contents[0] == LABEL.encode()
                codes["right" if right else "wrong"] += 1
            except grpc.RpcError as error:
                assert_sentence(error.details())
                codes[error.code().name] += 1

    ended = threading.Event()
    with Load(server, clients=12) as load:
        threads = [threading.Thread(target=ask_grpc, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        load.until(right=30)
        before = resident(server)
        load.until(right=60)
        assert resident(server) - before < 150 * MEGABYTE
        assert is_ready(server)
        ended.set()
        for thread in threads:
            thread.join(60)
    assert set(codes) <= {"right", "UNAVAILABLE"}, codes
    assert codes["UNAVAILABLE"]
    kinds = {outcome.split()[0] for outcome in load.counts}
    assert kinds == {"right", "503"}, load.counts
    assert_sane(server)
    assert measured(server)["tinyvit_refused_busy_requests_count"] > 0


def test_refusals_reach_pages_elsewhere(serve: Serve, tmp_path: Path) -> None:
    """A browser tells a page of another origin nothing of an answer without CORS headers."""
    folder = copy_with_workers(tmp_path, 0)
    altered(folder, "settings.json", lambda s: s | {"cors_settings": {"allow_origins": ["*"]}})
    server = serve(folder=folder, env={"TINYVIT_MAX_QUEUE": "1"})
    asked: list[requests.Response] = []

    def ask(_: int) -> requests.Response:
        return classify(server, PICTURE, headers={"Origin": "http://elsewhere.example"})

    def refused() -> bool:
        with ThreadPoolExecutor(8) as pool:
            asked.extend(pool.map(ask, range(16)))
        return any(response.status_code == 503 for response in asked)

    until(refused, 30)
    assert {response.status_code for response in asked} == {200, 503}
    assert {response.headers["access-control-allow-origin"] for response in asked} == {"*"}


PIXELS = b'"shape":[2000,2000,1],"data":[' + b"1," * (2000 * 2000 - 1) + b"1]"
GOOD = b'{"inputs":[{"name":"payload","datatype":"UINT8",' + PIXELS + b"}]}"
LARGE = {
    "not JSON": GOOD[:-1],
    "not an object": b"[" + GOOD + b"]",
    "too few values": GOOD.replace(b"[2000,", b"[2001,"),
    "a value too large": GOOD.replace(b"1]}]}", b"256]}]}"),
    "no such input": GOOD.replace(b"payload", b"picture"),
    "a shape of text": GOOD.replace(b"[2000,", b'["x",'),
}


@pytest.mark.parametrize("count", [0, 1])
def test_large_bad_requests(serve_workers: Callable[..., LocalServer], count: int) -> None:
    """Eight megabytes each, and nothing of them stays."""
    server = serve_workers(count)
    assert infer(server, GOOD).status_code == 200
    before = resident(server)
    for kind, request in LARGE.items():
        for _ in range(12):
            assert_refused(infer(server, request))
            grown = (resident(server) - before) / MEGABYTE
            assert grown < 250, f"{kind}: {grown:.0f} MB"
    assert_sane(server)


@pytest.mark.parametrize("count", [0, 1])
def test_timeout(serve_workers: Callable[..., LocalServer], count: int) -> None:
    server = serve_workers(count, env={"TINYVIT_TIMEOUT": "0.001"})
    assert "0.001" in assert_refused(ROUTES["infer"](server), 504)
    assert_refused(ROUTES["classify"](server), 504)
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(message(bytes_contents=[PICTURE]), timeout=30)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_sentence(failure.value.details())
    assert is_ready(server)
    assert measured(server)["tinyvit_refused_timeout_requests_count"] == 3
