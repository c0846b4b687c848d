"""The function `classify` for notebooks: all forms of an image, and invalid calls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.classify import classify
from client.images import ArgumentError, ClientError
from client.local import LocalServer
from tests.support.clients import COFFEE, encoded

IMAGE = Image.open(COFFEE).convert("RGB").resize((120, 80))
PIXELS = np.asarray(IMAGE)
GREY = np.asarray(IMAGE.convert("L"))
NOWHERE = "http://localhost:1"

both_encodings = pytest.mark.parametrize("encoding", ["array", "image"])


@both_encodings
def test_every_form_of_an_image_has_the_same_answer(
    server: LocalServer, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "coffee.png"
    path.write_bytes(encoded(IMAGE))
    alpha = np.full((80, 120, 1), 255, np.uint8)
    forms: list[Any] = [path, str(path), path.read_bytes(), IMAGE, PIXELS]
    forms += [PIXELS.astype(dtype) for dtype in (np.int64, np.uint16, np.int16)]
    forms += [np.concatenate([PIXELS, alpha], axis=2)]
    answers = [classify(form, url=server.url, encoding=encoding) for form in forms]
    assert len(answers[0]) == 5
    assert answers == answers[:1] * len(forms)
    top_3 = classify(PIXELS, url=server.url, encoding=encoding, top_k=np.int64(3))
    assert top_3 == answers[0][:3]


@both_encodings
def test_grey_images_of_8_and_16_bits(server: LocalServer, tmp_path: Path, encoding: str) -> None:
    """16 bits are scaled to 8 as the server does it, in Pillow's mode I, too."""
    deep = GREY.astype(np.uint16) * 257
    modes = [Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))]
    assert [image.mode for image in modes] == ["I;16", "I"]
    modes[0].save(tmp_path / "deep.png")
    forms = [GREY, GREY[:, :, None], *modes, tmp_path / "deep.png"]
    answers = [classify(form, url=server.url, encoding=encoding) for form in forms]
    assert answers == answers[:1] * len(forms)


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 6), ("RGBA", 3), ("L", 8), ("P", 1)])
def test_encodings_agree_on_odd_files(
    server: LocalServer, tmp_path: Path, mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "odd.png"
    Image.open(COFFEE).resize((90, 60)).convert(mode).save(path, exif=exif)
    by_array = classify(path, url=server.url)
    by_file = classify(path, url=server.url, encoding="image")
    assert [p.label for p in by_array] == [p.label for p in by_file]
    assert [p.score for p in by_array] == pytest.approx([p.score for p in by_file], abs=1e-4)


@both_encodings
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (PIXELS / 255, r"not float64: if they are from 0 to 1, pass \(255 \* pixels\)\.round"),
        (PIXELS.astype(np.int16) - 256, "not int16 from -256 to -1"),
        (PIXELS > 127, "not bool: if they are from 0 to 1"),
        (PIXELS.astype(object), r"not object\.$"),
        (np.zeros((0, 600, 3), np.uint8), "Empty image: 600x0 pixels"),
        (Image.new("RGB", (0, 5)), "Empty image: 0x5 pixels"),
        (Image.new("F", (5, 0)), "Empty image: 5x0 pixels"),
        (Image.fromarray(np.float32(GREY) / 255), "mode F .* to 1, so white is unknown: send mode"),
        (Image.fromarray(np.int32(GREY)), "mode I .*I;16"),
        (Image.fromarray(np.int32(GREY) - 1000), "mode I "),
        (PIXELS[None], r"Invalid shape \[1, 80, 120, 3\]"),
        (PIXELS[:, :, :2], r"Invalid shape \[80, 120, 2\]"),
        (None, "Image of type NoneType is neither path, bytes, PIL image nor NumPy array"),
        ([COFFEE], "Image of type list"),
    ],
)
def test_invalid_images_are_refused_before_anything_is_sent(
    image: Any, sentence: str, encoding: str
) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        classify(image, url=NOWHERE, encoding=encoding)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "Invalid top_k 0: expected an integer of at least 1"),
        ({"top_k": 2.0}, "top_k 2.0"),
        ({"top_k": np.bool_(True)}, "top_k .*True"),
        ({"encoding": "jpeg"}, "Unknown encoding 'jpeg': use 'array' or 'image'"),
        ({"url": "localhost:8080"}, "Invalid server URL 'localhost:8080'"),
    ],
)
def test_an_invalid_call_is_a_value_error(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        classify(COFFEE, **{"url": NOWHERE, **options})


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"no image", "Image of type bytes: Pillow cannot read this image"),
        (Path(__file__), r"\.py: Pillow cannot read this image"),
        ("http://example.org/cat.jpg", "URLs are not fetched: download http://example.org/cat.jpg"),
        (b"\0\0\0\x18ftyphevc", "HEIC is not supported"),
    ],
)
def test_files_that_cannot_be_read(image: Any, sentence: str) -> None:
    with pytest.raises(ClientError, match=sentence):
        classify(image, url=NOWHERE)


def test_the_servers_error_for_a_file_that_is_no_image(server: LocalServer) -> None:
    with pytest.raises(
        ClientError, match="Image of type bytes: The bytes are not a supported image"
    ):
        classify(b"no image", url=server.url, encoding="image")
