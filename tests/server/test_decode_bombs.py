"""Images crafted to exhaust memory or CPU: other clients are answered, and memory is bounded."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

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
    resident,
)
from tests.support.paths import RUNTIME
from tests.support.resource_monitor import MEGABYTE, resource_monitor
from tests.support.servers import Serve

pytestmark = [pytest.mark.slow, pytest.mark.exclusive]

BUDGET = 384 * MEGABYTE
"""The default of `max_decode_memory`."""

BOMBS: dict[str, Callable[[], bytes]] = {
    "lossless-webp": lambda: bombs.lossless_webp(8000, 8000),
    "run-lengths": lambda: bombs.rle_bmp(8000, 8000),
    "a-pixel-wide": lambda: bombs.png(1, 64_000_000),
    "a-pixel-high": lambda: bombs.png(64_000_000, 1),
    "scans": lambda: bombs.progressive_jpeg(8000, 8000, 1000),
    "hidden-scans": lambda: bombs.progressive_jpeg(2800, 2800, 30_000, bombs.HIDDEN_END),
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
    "avif-images": lambda: bombs.av1_units(700, 990),
    "avif-references": lambda: bombs.avif_references(30_000),
    "bmp-of-a-row": lambda: bombs.wide_bmp(20_000_000),
    "fill-bytes": lambda: b"\xff\xd8" + b"\xff" * 60 * MEGABYTE,
    "fill-bytes-in-a-scan": lambda: bombs.progressive_jpeg(64, 64, 1, b"\xff" * 60 * MEGABYTE),
}


@pytest.fixture(scope="module")
def server(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A server whose memory is watched, and which never times out."""
    folder = tmp_path_factory.mktemp("bombs")
    metrics = {"MLSERVER_METRICS_DIR": str(folder / "metrics")}
    env = environment | metrics | {"TINYVIT_TIMEOUT": "300"}
    with serving(RUNTIME, env=env, log=folder / "log", cwd=folder) as server:
        assert_sane(server)
        yield server


@pytest.mark.parametrize("name", BOMBS)
def test_two_bombs_at_once_are_refused_or_answered(server: LocalServer, name: str) -> None:
    """Two at the same time are refused, or answered if they are cheap."""
    data = BOMBS[name]()
    with resource_monitor(server) as watch, ThreadPoolExecutor(2) as clients:
        for response in clients.map(lambda _: classify(server, data, timeout=300), range(2)):
            assert response.status_code == 200 or assert_refused(response)
    watch.assert_harmless((BUDGET + 2 * len(data)) / MEGABYTE + 100, slowest=60)


LARGE: dict[str, Callable[[], bytes]] = {
    "lossless-webp": lambda: bombs.lossless_webp(4200, 4200),
    "png": lambda: bombs.png(8000, 8000),
    "progressive-jpeg": lambda: bombs.progressive_jpeg(8000, 8000, 17),
    "camera": lambda: encoded(Image.new("RGB", (8000, 6000), "teal"), "JPEG"),
    "avif": lambda: encoded(Image.new("RGB", (5000, 4000), "teal"), "AVIF", speed=10),
    "tiff": lambda: encoded(Image.new("RGB", (7000, 6000)), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", LARGE)
def test_six_large_images_use_the_memory_of_one(server: LocalServer, name: str) -> None:
    """Six are answered within the memory of one, which is freed."""
    data = LARGE[name]()
    with resource_monitor(server) as watch, ThreadPoolExecutor(6) as clients:
        responses = list(clients.map(lambda _: classify(server, data, timeout=300), range(6)))
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
    app = make_app(TINYVIT_MAX_DECODE_MEMORY=str(48 * MEGABYTE))
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    error = assert_refused(classify(app, encoded(Image.fromarray(noise), "JPEG")))
    assert "max_decode_memory" in error and " MiB" in error
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
