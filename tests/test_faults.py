"""Dying workers, failing engines, stops, reloads and floods: nothing good gets lost."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests

from clients import (
    COFFEE,
    LABEL,
    assert_refused,
    assert_sane,
    assert_sentence,
    body,
    children,
    classify,
    image_file,
    infer,
    labels,
    message,
    resident,
    stub,
    tensor,
    text,
    workers,
)
from conftest import Serve, settings as copy_with_workers
from local import LocalServer

STOPPED_WITHIN = 15.0
WHOLE_AGAIN_WITHIN = 20.0
PICTURE = COFFEE.read_bytes()
MEGABYTE = 2**20

ROUTES: dict[str, Callable[[LocalServer], requests.Response]] = {
    "infer": lambda server: infer(server, body(tensor(PICTURE))),
    "classify": lambda server: classify(server, PICTURE),
}


def best(response: requests.Response) -> str:
    content = response.json()
    return content["outputs"][0]["data"][0] if "outputs" in content else content[0]["label"]


@dataclass
class Load:
    """Clients that ask again as soon as they are answered, over both routes."""

    server: LocalServer
    clients: int = 6
    outcomes: list[str] = field(default_factory=list)
    """A status with its sentence, `right`, `wrong`, or how a connection failed."""

    def __enter__(self) -> "Load":
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request got no answer"

    def _ask(self, index: int) -> None:
        route = list(ROUTES.values())[index % len(ROUTES)]
        while not self._ended.is_set():
            try:
                response = route(self.server)
            except requests.RequestException as error:
                self.outcomes.append(type(error).__name__)
                time.sleep(0.02)
                continue
            if response.status_code == 200:
                self.outcomes.append("right" if best(response) == LABEL else "wrong")
            else:
                assert_sentence(response.json()["error"])
                self.outcomes.append(f"{response.status_code} {response.json()['error']}")
                time.sleep(0.02)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.outcomes)

    def until(self, right: int, within: float = 60) -> None:
        """Returns when so many more requests were answered rightly."""
        wanted = self.counts["right"] + right
        until(lambda: self.counts["right"] >= wanted, within)


def until(happened: Callable[[], Any], within: float) -> float:
    """Seconds until something has happened; fails when it has not in time."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < within, f"not within {within} s"
        time.sleep(0.02)
    return time.monotonic() - started


def is_ready(server: LocalServer) -> bool:
    """Server and model both; what one says is what the other says, a moment's change apart."""
    return all(
        requests.get(f"{server.url}/v2/{path}", timeout=10).ok
        for path in ("health/ready", "models/tinyvit/ready")
    )


def gone(pids: list[int]) -> bool:
    def runs(pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            return stat.rsplit(")", 1)[1].split()[0] != "Z"
        return False

    return not any(runs(pid) for pid in pids)


def metric(server: LocalServer, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = requests.get(server.metrics, timeout=10).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(\{{| )", line))


@pytest.fixture
def serve_workers(serve: Serve, tmp_path: Path) -> Callable[..., LocalServer]:
    """As `serve`, with so many workers."""

    def one(workers: int, **options: Any) -> LocalServer:
        folder = tmp_path / f"workers-{workers}"
        if not folder.exists():
            folder.mkdir()
            copy_with_workers(folder, workers)
        return serve(folder=folder / "tinyvit", **options)

    return one


def altered(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file in place, as an editor does: whole or not at all."""
    content = json.loads((folder / name).read_text())
    draft = folder / f".{name}"
    draft.write_text(json.dumps(change(content)))
    os.replace(draft, folder / name)


def extra(**values: Any) -> Callable[[Any], Any]:
    """A change of `parameters.extra` in model-settings.json."""

    def change(content: Any) -> Any:
        content["parameters"]["extra"] |= values
        return content

    return change


# --- Workers that die -------------------------------------------------------------------------


def test_one_worker_dies_under_load(serve_workers: Callable[..., LocalServer]) -> None:
    server = serve_workers(2)
    with Load(server) as load:
        load.until(right=20)
        for kill in (1, 2):
            before = workers(server)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            until(lambda victim=before[0]: victim not in workers(server), 5)
            assert is_ready(server)  # the other one serves
            load.until(right=20)
            until(lambda n=kill: server.output().count("is now ready") == n, WHOLE_AGAIN_WITHIN)
            assert len(workers(server)) == 2
            load.until(right=20)
    assert load.counts["wrong"] == 0
    strange = {o for o in load.counts if o != "right" and not o.startswith("503 ")}
    assert not strange, load.counts
    assert load.counts.total() - load.counts["right"] <= 2 * load.clients, load.counts


def test_all_workers_die(serve_workers: Callable[..., LocalServer]) -> None:
    server = serve_workers(2)
    assert_sane(server)
    before = workers(server)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_ready(server), 5)
    assert_refused(ROUTES["infer"](server), 503)
    assert_refused(ROUTES["classify"](server), 503)
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(message(bytes_contents=[PICTURE]), timeout=30)
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
    assert requests.get(f"{server.url}/v2/health/live", timeout=10).ok
    until(lambda: is_ready(server), WHOLE_AGAIN_WITHIN)
    assert_sane(server)
    until(lambda: server.output().count("is now ready") == 2, WHOLE_AGAIN_WITHIN)
    assert len(workers(server)) == 2 and not set(workers(server)) & set(before)
    for _ in range(4):
        assert_sane(server)


def test_worker_that_hangs(serve_workers: Callable[..., LocalServer]) -> None:
    """Its requests end in time, and another takes its place."""
    server = serve_workers(2, env={"TINYVIT_TIMEOUT": "2"})
    with Load(server) as load:
        load.until(right=20)
        victim = workers(server)[0]
        os.kill(victim, signal.SIGSTOP)
        until(lambda: victim not in workers(server), WHOLE_AGAIN_WITHIN)
        until(lambda: server.output().count("is now ready") == 1, WHOLE_AGAIN_WITHIN)
        load.until(right=40)
    assert len(workers(server)) == 2
    kinds = {outcome.split()[0] for outcome in load.counts}
    assert kinds <= {"right", "503", "504"} and "504" in kinds, load.counts
    assert server.stop() == 0


# --- An engine that throws --------------------------------------------------------------------


def test_engine_fails_its_batch_only() -> None:
    from batching import Batcher, EngineFailed

    def engine(pixels: np.ndarray) -> np.ndarray:
        if (pixels == 13).any():
            raise RuntimeError("no such kernel")
        return pixels * 2

    async def scenario() -> list[Any]:
        batcher = Batcher(engine, max_batch_size=2, max_batch_time=0, max_queue=64)
        values = [np.array([v]) for v in (1, 2, 13, 3, 4, 5)]
        answers = await asyncio.gather(*map(batcher.submit, values), return_exceptions=True)
        answers.append(await batcher.submit(np.array([6])))
        await batcher.close()
        return answers

    one, two, thirteen, three, *rest = asyncio.run(scenario())
    assert (one[0], two[0]) == (2, 4)
    assert isinstance(thirteen, EngineFailed) and isinstance(three, EngineFailed)
    assert thirteen.status_code == 500
    assert [answer[0] for answer in rest] == [8, 10, 12]
    assert_sentence(str(thirteen))


ENGINE_FAILS = """

_works = _infer


def _infer(request, pixels):
    if len(pixels) == 1 and (pixels == 13).all():
        raise RuntimeError("no such kernel")
    return _works(request, pixels)
"""


@pytest.mark.parametrize("count", [0, 1])
def test_engine_failure_is_one_answer(serve: Serve, tmp_path: Path, count: int) -> None:
    """500 for whom it concerns, the reason in the log only, and everybody else is served."""
    folder = copy_with_workers(tmp_path, count)
    with open(folder / "engine.py", "a") as engine:
        engine.write(ENGINE_FAILS)
    server = serve(folder=folder)
    unlucky = body(tensor([13] * 3 * 64 * 64, [64, 64, 3], "UINT8"))
    assert "kernel" not in assert_refused(infer(server, unlucky), 500)
    assert "no such kernel" in server.output()
    assert_sane(server)


# --- Stopping ---------------------------------------------------------------------------------


def assert_clean_stop(server: LocalServer, pids: list[int]) -> None:
    assert server.process.returncode == 0
    assert gone(pids)
    output = server.output()
    assert "Traceback" not in output, output[-4000:]
    assert "leaked" not in output, output[-4000:]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(
    serve_workers: Callable[..., LocalServer], count: int, sig: signal.Signals
) -> None:
    """Whatever was accepted is answered; then all processes are gone."""
    server = serve_workers(count)
    with Load(server) as load:
        load.until(right=30)
        pids = [server.process.pid, *children(server)]
        started = time.monotonic()
        server.process.send_signal(sig)
        server.process.wait(STOPPED_WITHIN)
        assert time.monotonic() - started < STOPPED_WITHIN
        until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)
    assert load.counts["wrong"] == 0
    assert set(load.counts) <= {"right", "ConnectionError"} | {
        outcome for outcome in load.counts if outcome.startswith("503 ")
    }, load.counts


@pytest.mark.parametrize("count", [0, 2])
def test_accepted_requests_outlive_a_stop(
    serve_workers: Callable[..., LocalServer], count: int
) -> None:
    """A pile of requests that was read whole before the signal came, over REST and gRPC."""
    server = serve_workers(count)
    assert_sane(server)
    many = tensor([text(PICTURE)] * 40)
    with ThreadPoolExecutor() as pool:
        rest = pool.submit(infer, server, body(many))
        remote = pool.submit(
            stub(server).ModelInfer, message([20], bytes_contents=[PICTURE] * 20), timeout=60
        )
        time.sleep(0.15)
        assert not rest.done()
        server.process.send_signal(signal.SIGTERM)
        assert labels(rest.result())[::5] == [LABEL] * 40
        assert remote.result().outputs[0].contents.bytes_contents[0] == LABEL.encode()
    assert server.process.wait(STOPPED_WITHIN) == 0


@pytest.mark.parametrize(("count", "sig"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_second_signal(
    serve_workers: Callable[..., LocalServer], count: int, sig: signal.Signals
) -> None:
    server = serve_workers(count)
    with Load(server) as load:
        load.until(right=10)
        pids = [server.process.pid, *children(server)]
        for _ in range(3):
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(sig)
            time.sleep(0.05)
        server.process.wait(STOPPED_WITHIN)
        until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)


def test_ctrl_c_reaches_every_process(serve_workers: Callable[..., LocalServer]) -> None:
    """A terminal sends it to the workers too."""
    server = serve_workers(2)
    pids = [server.process.pid, *children(server)]
    os.killpg(server.process.pid, signal.SIGINT)
    server.process.wait(STOPPED_WITHIN)
    until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)


@pytest.mark.parametrize("count", [0, 2])
def test_stop_while_loading(serve_workers: Callable[..., LocalServer], count: int) -> None:
    """At some moments from the first sign of life until the model is loaded."""
    for moment in ("HTTP server running", "Serving"):
        server = serve_workers(count, ready=False)
        until(lambda s=server, m=moment: m in s.output(), 60)
        pids = [server.process.pid, *children(server)]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(STOPPED_WITHIN)
        until(lambda p=pids: gone(p), STOPPED_WITHIN)
        assert_clean_stop(server, pids)


def test_stop_while_converting(serve: Serve, tmp_path: Path) -> None:
    """With a cold cache, another process converts the network; it goes too, and leaves nothing."""
    cache = tmp_path / "cold"
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)}, ready=False)
    until(lambda: "Converting" in server.output(), 60)
    time.sleep(0.5)
    pids = [server.process.pid, *children(server)]
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOPPED_WITHIN)
    until(lambda: gone(pids), STOPPED_WITHIN)
    assert_clean_stop(server, pids)
    server = serve(env={"TINYVIT_CACHE_DIR": str(cache)})
    assert_sane(server)


# --- Models that cannot be loaded -------------------------------------------------------------


def unknown_setting(folder: Path) -> str:
    altered(folder, "model-settings.json", extra(presicion="bf16"))
    return "presicion"


def missing_uri(folder: Path) -> str:
    def change(content: Any) -> Any:
        content["parameters"]["uri"] = "./nowhere"
        return content

    altered(folder, "model-settings.json", change)
    return "nowhere"


def damaged_weights(folder: Path) -> str:
    shutil.copytree(folder / "sample", folder / "broken")
    weights = folder / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    def change(content: Any) -> Any:
        content["parameters"]["uri"] = "./broken"
        return content

    altered(folder, "model-settings.json", change)
    return "broken"


BREAKS = {f.__name__: f for f in (unknown_setting, missing_uri, damaged_weights)}


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS.keys())
def test_model_that_cannot_be_loaded(
    serve: Serve, tmp_path: Path, count: int, break_it: Callable[[Path], str]
) -> None:
    """Exit status 1, and the last line says why."""
    folder = copy_with_workers(tmp_path, count)
    named = break_it(folder)
    server = serve(folder=folder, ready=False)
    assert server.process.wait(60) == 1
    last = server.output().rstrip().splitlines()[-1]
    assert last.startswith("The server stops") and named in last, last
    until(lambda: not children(server), 5)


# --- Reloads ----------------------------------------------------------------------------------


def repository(server: LocalServer, what: str) -> requests.Response:
    url = f"{server.url}/v2/repository/models/tinyvit/{what}"
    return requests.post(url, timeout=120)


@pytest.mark.parametrize("count", [0, 1])
def test_reloads(serve_workers: Callable[..., LocalServer], tmp_path: Path, count: int) -> None:
    """Under load: good ones, several at once, and one that fails. Nobody notices."""
    server = serve_workers(count)
    folder = tmp_path / f"workers-{count}" / "tinyvit"
    good = (folder / "model-settings.json").read_text()
    with Load(server) as load:
        load.until(right=10)
        assert repository(server, "load").status_code == 200
        load.until(right=10)
        threads = thread_count(server)
        with ThreadPoolExecutor() as pool:
            several = list(pool.map(lambda _: repository(server, "load"), range(3)))
        assert [response.status_code for response in several] == [200] * 3
        load.until(right=10)
        until(lambda: thread_count(server) <= threads + 6, 10)  # the old models are gone
        altered(folder, "model-settings.json", extra(presicion="bf16"))
        failed = repository(server, "load")
        assert 400 <= failed.status_code <= 500 and "presicion" in failed.json()["error"]
        assert is_ready(server)
        load.until(right=10)
        (folder / "model-settings.json").write_text(good)
        assert repository(server, "load").status_code == 200
        load.until(right=10)
    assert set(load.counts) == {"right"}, load.counts
    assert_sane(server)

    assert repository(server, "unload").status_code == 200
    for route in ROUTES.values():
        assert route(server).status_code in (404, 503)
    assert repository(server, "unload").status_code == 404
    assert repository(server, "load").status_code == 200
    assert is_ready(server)
    assert_sane(server)
    assert server.stop() == 0


def thread_count(server: LocalServer) -> int:
    pids = [server.process.pid, *children(server)]
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)


# --- Too much ---------------------------------------------------------------------------------


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
    assert metric(server, "tinyvit_refused_busy_requests_count") > 0


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
    assert metric(server, "tinyvit_refused_timeout_requests_count") == 3


# --- Clients that hang up ---------------------------------------------------------------------


def hang_up(server: LocalServer, path: str, data: bytes, whole: bool = True) -> None:
    """Sends a request, or half of it, and does not wait for the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), 10) as connection:
        connection.sendall(head.encode() + (data if whole else data[: len(data) // 2]))
        time.sleep(0.02)


@pytest.mark.parametrize("count", [0, 1])
def test_clients_that_hang_up(serve_workers: Callable[..., LocalServer], count: int) -> None:
    """Their work is not done, and their places in the queue are free at once."""
    server = serve_workers(count, env={"TINYVIT_NUM_THREADS": "1"})
    assert_sane(server)
    large = image_file("JPEG", (4000, 3000))
    many = json.dumps(body(tensor([text(large)] * 20))).encode()
    before = metric(server, "tinyvit_batch_size_images_sum")
    for _ in range(8):
        hang_up(server, "/v2/models/tinyvit/infer", many)
    for _ in range(20):
        hang_up(server, "/v2/models/tinyvit/classify", large, whole=False)
    for _ in range(20):
        hang_up(server, "/v2/models/tinyvit/classify", large)
    started = time.monotonic()
    assert_sane(server)
    assert time.monotonic() - started < 10
    done = metric(server, "tinyvit_batch_size_images_sum") - before - 2
    assert done < 10, "of 180 images that nobody waits for"
    everyone = ThreadPoolExecutor(60)
    assert set(everyone.map(lambda _: best(ROUTES["classify"](server)), range(60))) == {LABEL}
    assert "Traceback" not in server.output(), server.output()[-4000:]
    assert server.stop() == 0
