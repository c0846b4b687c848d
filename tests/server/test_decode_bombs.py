"""Pictures made to cost much are refused, or decoded one after the other; nobody else notices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from client.local import LocalServer
from tests.support import bombs
from tests.support.clients import (
    assert_refused,
    assert_sane,
    assert_sentence,
    children,
    classify,
    encoded,
    resident,
    until,
    workers,
)
from tests.support.resource_monitor import MEGABYTE, Watch, watching
from tests.support.servers import Serve

BUDGET = 384 * MEGABYTE
"""The default of `max_decode_memory`."""

REFUSED: dict[str, Callable[[], bytes]] = {
    "lossless-webp": lambda: bombs.lossless_webp(8000, 8000),
    "run-lengths": lambda: bombs.rle_bmp(8000, 8000),
    "a-pixel-wide": lambda: bombs.png(1, 64_000_000),
    "a-pixel-high": lambda: bombs.png(64_000_000, 1),
    "rgba": lambda: bombs.png(8000, 8000),
    "scans": lambda: bombs.progressive_jpeg(8000, 8000, 1000),
    "hidden-scans": lambda: bombs.progressive_jpeg(2800, 2800, 30_000, bombs.HIDING["comment"]),
    "chunks": lambda: bombs.png(4, 4, extra=[bombs.png_chunk(b"tEXt")] * 4_000_000),
    "zipped-text": lambda: bombs.png(4, 4, extra=[bombs.zipped_text()] * 10_001),
    "frames": lambda: bombs.animated_webp(2_000_000),
    "blocks": lambda: bombs.gif(20_000_000),
    "tags": lambda: bombs.tiff({256: (4, 4), 257: (4, 4)}, more_tags=25_000),
    "large-tiff-tile": lambda: bombs.tiff(
        {256: (4, 8000), 257: (4, 8000), 259: (3, 8), 322: (4, 2**14), 323: (4, 2**14)}
    ),
    "strips-of-the-same-bytes": lambda: bombs.shared_strips(8, bombs.empty_deflate_blocks(200_000)),
    "avif-extents": lambda: bombs.empty_extents(1000, 1000),
    "avif-pictures": lambda: bombs.av1_units(700, 990),
    "avif-references": lambda: bombs.avif_references(30_000),
    "bmp-of-a-row": lambda: bombs.wide_bmp(20_000_000),
    "fill-bytes": lambda: b"\xff\xd8" + b"\xff" * 60 * MEGABYTE,
    "fill-bytes-in-a-scan": lambda: bombs.progressive_jpeg(64, 64, 1, b"\xff" * 60 * MEGABYTE),
}


@pytest.fixture(scope="module")
def server(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """One of this module's own: its memory is watched, and others leave some behind."""
    from conftest import ROOT

    from client.local import serving

    folder = tmp_path_factory.mktemp("bombs")
    variables = {
        **environment,
        "MLSERVER_METRICS_DIR": str(folder / "metrics"),
        "TINYVIT_TIMEOUT": "300",  # however busy this machine is
    }
    with serving(ROOT / "tinyvit", env=variables, log=folder / "log", cwd=folder) as one:
        assert_sane(one)
        yield one


def assert_unnoticed(watch: Watch) -> None:
    assert watch.gap < 1, f"liveness took {watch.gap:.2f} s"
    assert not watch.failures, watch.failures[:3]
    assert watch.answers, "nobody else was answered"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server: LocalServer, name: str) -> None:
    """Two at once, of each."""
    data = REFUSED[name]()
    with watching(server) as watch, ThreadPoolExecutor(2) as clients:
        for answer in clients.map(lambda _: classify(server, data), range(2)):
            assert_refused(answer)
    assert_unnoticed(watch)
    assert watch.slowest < 1, f"another's answer took {watch.slowest:.2f} s"
    assert watch.growth < 200 * MEGABYTE, f"{watch.growth / MEGABYTE:.0f} MB"


LARGE: dict[str, Callable[[], bytes]] = {
    "lossless-webp": lambda: bombs.lossless_webp(4200, 4200),
    "png": lambda: bombs.png(6500, 6500),
    "progressive-jpeg": lambda: bombs.progressive_jpeg(8000, 8000, 17),
    "camera": lambda: encoded(Image.new("RGB", (8000, 6000), "teal"), "JPEG"),
    "avif": lambda: encoded(Image.new("RGB", (5000, 4000), "teal"), "AVIF", speed=10),
    "tiff": lambda: encoded(Image.new("RGB", (7000, 6000)), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_take_turns(server: LocalServer, name: str) -> None:
    """All are answered, within the memory of one; it is given back."""
    data = LARGE[name]()
    with watching(server) as watch, ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: classify(server, data), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text
    assert_unnoticed(watch)
    body = 6 * len(data)
    assert watch.growth < BUDGET + body + 100 * MEGABYTE, f"{watch.growth / MEGABYTE:.0f} MB"
    assert resident(server) - watch.before < 100 * MEGABYTE + body


def test_they_wait_no_longer_than_the_timeout(serve: Serve) -> None:
    """Whoever gets no memory in time is answered 504, and keeps nobody from it afterwards."""
    one = serve(env={"TINYVIT_TIMEOUT": "2", "TINYVIT_NUM_THREADS": "2"})
    data = bombs.progressive_jpeg(8000, 8000, 30)
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: classify(one, data), range(12)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 504} or statuses == {504}, statuses
    for answer in answers:
        if answer.status_code == 504:
            assert_sentence(answer.json()["error"])
    assert_sane(one)


def test_budget_is_a_setting(serve: Serve) -> None:
    one = serve(env={"TINYVIT_MAX_DECODE_MEMORY": str(16 * MEGABYTE)})
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    error = assert_refused(classify(one, encoded(Image.fromarray(noise), "JPEG")))
    assert "29 MiB" in error and "16 MiB" in error
    assert_sane(one)


@pytest.mark.filterwarnings("ignore:Tag data larger")  # of Pillow's here, while it writes a file
def test_broken_exif_fills_no_log(server: LocalServer) -> None:
    """Of 8,000 broken tags not a line: they are not read."""
    exif = bombs.exif(8000)
    before = len(server.output())
    for data in (
        bombs.png(4, 4, extra=[bombs.png_chunk(b"eXIf", exif)]),
        encoded(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0" + exif[:65_000]),
        encoded(Image.new("RGB", (9, 9)), "WEBP", exif=exif),
        encoded(Image.new("RGB", (9, 9)), "AVIF", exif=exif),
    ):
        assert classify(server, data).status_code == 200
    assert len(server.output()) - before < 2000


HANGING = """
import time
from PIL import ImageFile

load = ImageFile.ImageFile.load

def hang(image):
    if image.size == (77, 77):
        time.sleep(3600)
    return load(image)

ImageFile.ImageFile.load = hang
"""


@pytest.mark.parametrize("count", [0, 1])
def test_a_stuck_thread_ends_the_process(serve: Serve, tmp_path: Path, count: int) -> None:
    """Not ready meanwhile, one line that says why; then the process ends, or the worker is
    replaced."""
    from conftest import ROOT, settings

    (tmp_path / "sitecustomize.py").write_text(HANGING)
    folder = settings(tmp_path, count) if count else ROOT / "tinyvit"
    env = {"PYTHONPATH": str(tmp_path), "TINYVIT_TIMEOUT": "3", "TINYVIT_NUM_THREADS": "2"}
    one = serve(env=env, folder=folder)
    worker = workers(one)[0] if count else 0
    assert_refused(classify(one, encoded(Image.new("RGB", (77, 77)))), 504)
    assert requests.get(f"{one.url}/v2/health/live", timeout=5).ok
    if not count:
        # The thread began a little after the request, so it is late a little after the answer.
        for path in ("health/ready", "models/tinyvit/ready"):
            asked = f"{one.url}/v2/{path}"
            until(lambda asked=asked: requests.get(asked, timeout=5).status_code == 503, 5)
        assert one.process.wait(40) == 1
    else:
        until(lambda: worker not in children(one), 40)
        until(lambda: classify(one, encoded(Image.new("RGB", (9, 9)))).ok, 90)
        assert_sane(one)
    assert one.output().count("not ready, and unless") == 1
    assert one.output().count("cannot be stopped") == 1
