"""Files of every kind get timm's answers. tests/unit/images/test_decode.py compares pixels."""

import pytest
from PIL import Image

from tests.support.answers import answers, assert_timms_answers, files, photo, pixels, shows
from tests.support.app import App
from tests.support.clients import CAT, COFFEE, body, classify, encoded, infer, tensor, text


@pytest.mark.parametrize("kind", ["JPEG cat", "PNG RGBA", "WebP lossy", "GIF animated"])
def test_infer_and_classify_agree_with_timm(app: App, kind: str) -> None:
    file, image = files()[kind][0], shows(kind)
    assert_timms_answers(app, body(tensor(file, [1, 1])), image)
    ranking = [(one["label"], one["score"]) for one in classify(app, file).json()]
    assert ranking == list(zip(*answers(app, body(tensor(file)))[0], strict=True))


def test_a_file_and_its_pixels_get_the_same_bits(app: App) -> None:
    array = photo(451, 300, COFFEE)
    png = encoded(Image.fromarray(array), "PNG")
    assert answers(app, body(pixels(array))) == answers(app, body(tensor(png)))


def test_a_request_with_every_kind_of_file(app: App) -> None:
    everything = [text(file) for file, _ in files().values()]
    request = body(tensor(everything, [len(everything), 1]), parameters={"top_k": 2})
    assert_timms_answers(app, request, *[shows(kind) for kind in files()], k=2)


def test_a_column_of_files_may_be_nested(app: App) -> None:
    column = [text(COFFEE.read_bytes()), text(CAT.read_bytes())]
    flat = infer(app, body(tensor(column, [2, 1]))).json()["outputs"]
    nested = infer(app, body(tensor([[file] for file in column], [2, 1])))
    assert nested.json()["outputs"] == flat
