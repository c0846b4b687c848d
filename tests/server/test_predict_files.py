"""Files of every kind are answered as timm answers what a viewer shows of them."""

import functools

import pytest
from PIL import Image

from client.local import LocalServer
from tests.support.answers import answers, assert_true, files, photo, pixels, shows
from tests.support.clients import COFFEE, body, classify, encoded, infer, tensor, text

CAT = COFFEE.with_name("cat.jpg")


@pytest.mark.parametrize("kind", list(files()))
def test_files(either_server: LocalServer, kind: str) -> None:
    """Over infer and over classify, which is the same answer in fewer words."""
    file, picture = files()[kind][0], shows(kind)
    assert_true(either_server, body(tensor(file)), picture)
    assert_true(either_server, body(tensor(file, [1, 1])), picture)
    response = classify(either_server, file)
    assert response.status_code == 200, response.text
    told = [(one["label"], one["score"]) for one in response.json()]
    assert told == list(zip(*answers(either_server, body(tensor(file)))[0], strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(either_server: LocalServer, orientation: int) -> None:
    """A photograph stored on its side is seen upright, as if it had never been turned."""
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = Image.fromarray(photo(70, 50, COFFEE))
    stored = functools.reduce(Image.Image.transpose, turns[orientation], upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_true(either_server, body(tensor(encoded(stored, "PNG", exif=exif))), upright)


def test_encodings_agree(either_server: LocalServer) -> None:
    """To the bit, with the queue empty: both end in the same pixels."""
    array = photo(451, 300, COFFEE)
    png = encoded(Image.fromarray(array), "PNG")
    assert answers(either_server, body(pixels(array))) == answers(either_server, body(tensor(png)))


def test_mixed_batches(either_server: LocalServer) -> None:
    """Every kind of file in one request, each answered in its place."""
    everything = [text(file) for file, _ in files().values()]
    assert_true(either_server, body(tensor(everything)), *[shows(kind) for kind in files()])
    request = body(tensor(everything, [len(everything), 1]), parameters={"top_k": 2})
    assert_true(either_server, request, *[shows(kind) for kind in files()], k=2)


def test_nested_as_the_shape_says(either_server: LocalServer) -> None:
    """A column of files may be a list of lists of one."""
    files = [text(COFFEE.read_bytes()), text(CAT.read_bytes())]
    flat = infer(either_server, body(tensor(files, [2, 1]))).json()["outputs"]
    nested = infer(either_server, body(tensor([[each] for each in files], [2, 1])))
    assert nested.json()["outputs"] == flat
