"""The client in a notebook: `classify` takes what people have, and says what is wrong."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.classify import classify
from client.pictures import ArgumentError, ClientError
from tests.support.clients import COFFEE

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Image.open(COFFEE).convert("RGB").resize((120, 80))
PIXELS = np.asarray(PICTURE)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "coffee.png"
    path.write_bytes(png(PICTURE))
    return path


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_every_form_of_a_picture_has_the_same_answer(server, path, encoding) -> None:
    forms = [path, str(path), path.read_bytes(), PICTURE, PIXELS]
    answers = [classify(form, url=server.url, encoding=encoding) for form in forms]
    assert len(answers[0]) == 5
    assert answers[1:] == answers[:1] * 4


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_grey_and_transparent_arrays(server, encoding) -> None:
    grey = PIXELS[:, :, 0]
    alpha = np.full((80, 120, 1), 255, np.uint8)
    options = {"url": server.url, "encoding": encoding}
    assert classify(grey, **options) == classify(grey[:, :, None], **options)
    opaque = classify(np.concatenate([PIXELS, alpha], axis=2), **options)
    assert opaque == classify(PIXELS, **options)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_encodings_agree_on_odd_pictures(server, tmp_path, mode, orientation) -> None:
    picture = tmp_path / "odd.png"
    image = Image.open(COFFEE).resize((90, 60)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(picture, exif=exif)
    by_array = classify(picture, url=server.url)
    by_file = classify(picture, url=server.url, encoding="image")
    assert [p.label for p in by_array] == [p.label for p in by_file]
    assert [p.score for p in by_array] == pytest.approx([p.score for p in by_file], abs=1e-4)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (PIXELS / 255, "uint8, 0 to 255, not float64"),
        (PIXELS.astype(np.int64) + 1, "not int64 from 1 to 256"),
        (PIXELS.astype(np.int16) - 256, "not int16 from -256 to -1"),
        (PIXELS > 127, r"not bool; .*255 \* pixels.astype"),
        (PIXELS.astype(object), r"not object\.$"),
        (PIXELS.astype(complex), r"not complex128\.$"),
        (np.zeros((0, 600, 3), np.uint8), "600x0 pixels has nothing to see"),
        (np.zeros((600, 0), np.uint8), "0x600 pixels has nothing to see"),
        (Image.new("RGB", (0, 5)), "0x5 pixels has nothing to see"),
        (Image.fromarray(np.float32(PIXELS[:, :, 0]) / 255), "The Image has the mode F .*to 1,"),
        (Image.fromarray(np.float32(PIXELS[:, :, 0])), "mode F .*I;16"),
        (Image.fromarray(np.int32(PIXELS[:, :, 0])), "mode I and .*I;16"),
        (Image.fromarray(np.int32(PIXELS[:, :, 0]) * 70000), "mode I"),
        (Image.fromarray(np.int32(PIXELS[:, :, 0]) - 1000), "mode I"),
        (PIXELS[None], r"not \[1, 80, 120, 3\]"),
        (PIXELS[:, :, :2], r"not \[80, 120, 2\]"),
        (None, "not NoneType"),
        ([COFFEE], "not list"),
    ],
)
@pytest.mark.parametrize("encoding", ["array", "image"])
def test_what_is_no_picture_is_said_before_anything_is_sent(picture, sentence, encoding) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        classify(picture, url="http://localhost:1", encoding=encoding)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "top_k is a whole number, 1 or more, not 0"),
        ({"top_k": True}, "not True"),
        ({"top_k": 2.0}, "not 2.0"),
        ({"top_k": np.bool_(True)}, "not .*True"),
        ({"top_k": np.int64(0)}, "not .*0"),
        ({"encoding": "jpeg"}, "'array' or 'image', not 'jpeg'"),
        ({"url": "localhost:8080"}, "begins with http://"),
    ],
)
def test_a_wrong_call_is_a_value_error(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        classify(COFFEE, **options)


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_whole_numbers_of_any_type(server, encoding) -> None:
    """For pixels, as the server takes them, and for top_k."""
    options = {"url": server.url, "encoding": encoding}
    expected = classify(PIXELS, top_k=3, **options)
    assert len(expected) == 3
    for dtype in (np.int64, np.uint16, np.int16):
        assert classify(PIXELS.astype(dtype), top_k=np.int64(3), **options) == expected


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_sixteen_bits_are_scaled_down(server, tmp_path, encoding) -> None:
    """As the server does with such a file, also where Pillow opens it in mode I."""
    grey = np.asarray(PICTURE.convert("L"))
    deep = grey.astype(np.uint16) * 257
    options = {"url": server.url, "encoding": encoding}
    expected = classify(grey, **options)
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        assert image.mode in ("I;16", "I")
        assert classify(image, **options) == expected
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert classify(tmp_path / "deep.png", **options) == expected


def test_file_of_unknown_range(tmp_path) -> None:
    """The server refuses it too."""
    Image.fromarray(np.float32(PIXELS[:, :, 0]) / 255).save(tmp_path / "float.tif")
    with pytest.raises(ClientError, match=r"float\.tif has the mode F"):
        classify(tmp_path / "float.tif", url="http://localhost:1")


@pytest.mark.parametrize(
    ("picture", "verb"), [(b"no picture", "The bytes are"), (Path(__file__), r"\.py is")]
)
def test_a_file_that_is_no_image(server, picture, verb) -> None:
    with pytest.raises(ClientError, match=f"{verb} no image that can be read"):
        classify(picture, url=server.url)
    with pytest.raises(ClientError, match="no image that is accepted"):
        classify(picture, url=server.url, encoding="image")


REQUESTS_ALONE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlserver", "numpy", "PIL", "tqdm", "grpc", "pydantic"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, "client")
import runpy
sys.argv = ["client/classify.py", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def with_requests_alone(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", REQUESTS_ALONE, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_requests_alone_suffices_for_files(server, path) -> None:
    done = with_requests_alone("--encoding", "image", "--url", server.url, path, COFFEE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("espresso") == 2


@pytest.mark.parametrize(
    ("options", "package", "otherwise"),
    [
        ([], "pillow", "the encoding 'image'"),
        (["--encoding", "image", "--grpc", "localhost:1"], "grpcio", "without --grpc"),
        (["--encoding", "image", "--embeddings", "no.npz"], "numpy", "labels"),
    ],
)
def test_a_missing_package_is_said_before_anything_is_sent(
    path, options, package, otherwise
) -> None:
    """There is no server to send anything to."""
    done = with_requests_alone("--url", "http://localhost:1", *options, path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"without {package}, which is not installed: pip install " in done.stderr
    assert otherwise in done.stderr
