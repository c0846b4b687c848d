"""The page at `/` lists every model of this runtime and lets one choose, in a real Chromium."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import Select

from client.local import LocalServer, serving
from tests.support.browser import Page, guesses
from tests.support.checkpoints import NAMES
from tests.support.clients import COFFEE, LABEL, classify, labels
from tests.support.servers import two_models


@pytest.fixture(scope="module")
def copies(
    environment: Mapping[str, str],
    small_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalServer]:
    """Two models of this runtime."""
    folder = tmp_path_factory.mktemp("copies")
    root = two_models(folder / "repository", small_checkpoint)
    variables = {**environment, "MLSERVER_METRICS_DIR": str(folder / "metrics")}
    with serving(root, env=variables, log=folder / "log", cwd=folder) as server:
        yield server


def test_every_model_of_this_runtime_can_be_chosen(blank: Page, copies: LocalServer) -> None:
    blank.open(copies.url)
    models = Select(blank.one("#model"))
    assert [option.text for option in models.options] == ["first", "second"]
    assert models.first_selected_option.text == "first"
    blank.choose(COFFEE)
    (card,) = blank.cards(1)
    assert guesses(card)[0] == LABEL

    models.select_by_visible_text("second")
    blank.until(lambda: "3 classes" in blank.one("#served").text, "what the second serves")
    assert "/v2/models/second/classify" in blank.one("#shell").text
    assert "/v2/models/second/classify" in blank.one("#python").text
    blank.choose(COFFEE)
    newest = blank.cards(2)[0]
    told = labels(classify(copies, COFFEE.read_bytes(), model="second", params={"top_k": 3}))
    assert guesses(newest) == told and set(told) == set(NAMES)

    models.select_by_visible_text("first")
    blank.until(lambda: "1000 classes" in blank.one("#served").text, "what the first serves")
    blank.choose(COFFEE)
    assert guesses(blank.cards(3)[0])[0] == LABEL
    assert blank.complaints() == []


def test_one_model_is_not_offered_for_choice(page: Page) -> None:
    assert not page.one("#model").is_displayed()
