"""Files get timm's answers. tests/unit/images/test_decode.py compares the pixels of every kind."""

import pytest
from PIL import Image

from tests.support.answers import answers, assert_timms_answers, files, photo, pixels
from tests.support.app import App
from tests.support.clients import COFFEE, body, classify, encoded, tensor, text


@pytest.mark.parametrize("kind", files())
def test_infer_and_classify_agree_with_timm(app: App, kind: str) -> None:
    file, image = files()[kind]
    assert_timms_answers(app, body(tensor(file, [1, 1])), image)
    ranking = [(one["label"], one["score"]) for one in classify(app, file).json()]
    assert ranking == list(zip(*answers(app, body(tensor(file)))[0], strict=True))


def test_a_file_and_its_pixels_get_the_same_bits(app: App) -> None:
    array = photo(451, 300, COFFEE)
    png = encoded(Image.fromarray(array), "PNG")
    assert answers(app, body(pixels(array))) == answers(app, body(tensor(png)))


def test_a_request_with_files_of_several_kinds(app: App) -> None:
    several, images = zip(*files().values(), strict=True)
    column = tensor([text(file) for file in several], [len(several), 1])
    assert_timms_answers(app, body(column, parameters={"top_k": 2}), *images, k=2)
