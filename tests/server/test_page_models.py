"""The page at `/` lets its user choose between the models of this runtime."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import Select

from client.local import LocalServer, serving
from tests.support.browser import Page, guesses
from tests.support.checkpoints import NAMES
from tests.support.clients import COFFEE, LABEL, classify, labels
from tests.support.paths import ROOT, SAMPLE
from tests.support.servers import HOOK, write_model, write_settings

pytestmark = pytest.mark.slow

CLASSIFIER = "mlserver_timm.TimmClassifier"


@pytest.fixture(scope="module")
def two_models(
    environment: Mapping[str, str],
    small_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalServer]:
    """A server with two models of this runtime and another one."""
    folder = tmp_path_factory.mktemp("two")
    for name, implementation, uri in (
        ("first", CLASSIFIER, SAMPLE),
        ("second", CLASSIFIER, small_checkpoint),
        ("sum", "sum_model.SumModel", ROOT),
    ):
        write_model(folder / "models" / name, name, implementation, parameters={"uri": str(uri)})
    write_settings(folder / "models", parallel_workers=0, **HOOK)
    variables = {
        **environment,
        "MLSERVER_METRICS_DIR": str(folder / "metrics"),
        "PYTHONPATH": f"{ROOT / 'tinyvit'}:{ROOT / 'benchmarks'}",
    }
    with serving(folder / "models", env=variables, log=folder / "log", cwd=folder) as server:
        yield server


def test_the_chosen_model_answers(blank: Page, two_models: LocalServer) -> None:
    blank.open(two_models.url)
    models = Select(blank.one("#model"))
    assert [option.text for option in models.options] == ["first", "second"]
    assert models.first_selected_option.text == "first"
    blank.choose(COFFEE)
    (card,) = blank.cards(1)
    assert guesses(card)[0] == LABEL

    models.select_by_visible_text("second")
    blank.until(lambda: "3 classes" in blank.one("#served").text, "the second model's facts")
    assert "/v2/models/second/classify" in blank.one("#shell").text
    assert "/v2/models/second/classify" in blank.one("#python").text
    blank.choose(COFFEE)
    response = classify(two_models, COFFEE.read_bytes(), model="second", params={"top_k": 3})
    assert guesses(blank.cards(2)[0]) == labels(response)
    assert set(labels(response)) == set(NAMES)

    models.select_by_visible_text("first")
    blank.until(lambda: "1000 classes" in blank.one("#served").text, "the first model's facts")
    blank.choose(COFFEE)
    assert guesses(blank.cards(3)[0])[0] == LABEL
    assert blank.complaints() == []


def test_a_single_model_is_not_offered_for_choice(page: Page) -> None:
    assert not page.one("#model").is_displayed()
