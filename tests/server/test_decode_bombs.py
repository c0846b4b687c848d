"""Images that are expensive to decode are refused or take turns; nobody else notices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.local import LocalServer, serving
from tests.support import bombs
from tests.support.app import App
from tests.support.clients import (
    assert_refused,
    assert_sane,
    classify,
    encoded,
    request,
    resident,
    until,
)
from tests.support.paths import RUNTIME
from tests.support.resource_monitor import MEGABYTE, watching
from tests.support.servers import Serve

pytestmark = [pytest.mark.slow, pytest.mark.exclusive]

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
    """A server of this module's own: its memory is watched, and it never times out."""
    folder = tmp_path_factory.mktemp("bombs")
    metrics = {"MLSERVER_METRICS_DIR": str(folder / "metrics")}
    env = environment | metrics | {"TINYVIT_TIMEOUT": "300"}
    with serving(RUNTIME, env=env, log=folder / "log", cwd=folder) as server:
        assert_sane(server)
        yield server


@pytest.mark.parametrize("name", REFUSED)
def test_two_at_once_are_refused(server: LocalServer, name: str) -> None:
    data = REFUSED[name]()
    with watching(server) as watch, ThreadPoolExecutor(2) as clients:
        for response in clients.map(lambda _: classify(server, data), range(2)):
            assert_refused(response)
    watch.assert_harmless()


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
    """Six are answered within the memory of one, which is returned."""
    data = LARGE[name]()
    with watching(server) as watch, ThreadPoolExecutor(6) as clients:
        responses = list(clients.map(lambda _: classify(server, data), range(6)))
    assert [r.status_code for r in responses] == [200] * 6, responses[0].text
    bodies = 6 * len(data) / MEGABYTE
    watch.assert_harmless(BUDGET / MEGABYTE + bodies + 100, slowest=60)
    assert resident(server) - watch.before < (100 + bodies) * MEGABYTE


def test_waiting_for_memory_times_out(serve: Serve) -> None:
    server = serve(env={"TINYVIT_TIMEOUT": "2", "TINYVIT_NUM_THREADS": "2"})
    data = bombs.progressive_jpeg(8000, 8000, 30)
    with ThreadPoolExecutor(12) as clients:
        responses = list(clients.map(lambda _: classify(server, data), range(12)))
    statuses = {response.status_code for response in responses}
    assert 504 in statuses and statuses <= {200, 504}, statuses
    for response in responses:
        if response.status_code == 504:
            assert_refused(response, 504)
    assert_sane(server)


def test_max_decode_memory_is_a_setting(make_app: Callable[..., App]) -> None:
    app = make_app(TINYVIT_MAX_DECODE_MEMORY=str(16 * MEGABYTE))
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    error = assert_refused(classify(app, encoded(Image.fromarray(noise), "JPEG")))
    assert "29 MiB" in error and "16 MiB" in error
    assert_sane(app)


@pytest.mark.filterwarnings("ignore:Tag data larger")  # of Pillow's here, while it writes a file
def test_broken_exif_fills_no_log(server: LocalServer) -> None:
    """Pillow writes a warning for each of 8,000 broken tags; the server reads none."""
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


def test_a_stuck_thread_ends_the_process(serve: Serve, tmp_path: Path) -> None:
    """The server is not ready meanwhile, and one log line says why."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    env = {"PYTHONPATH": str(tmp_path), "TINYVIT_TIMEOUT": "3", "TINYVIT_NUM_THREADS": "2"}
    server = serve(env=env)
    assert_refused(classify(server, encoded(Image.new("RGB", (77, 77)))), 504)
    assert request(server, "GET", "/v2/health/live").ok
    for path in ("/v2/health/ready", "/v2/models/tinyvit/ready"):
        until(lambda path=path: request(server, "GET", path).status_code == 503, 5)
    assert server.process.wait(40) == 1
    assert server.output().count("not ready, and unless") == 1
    assert server.output().count("cannot be stopped") == 1
