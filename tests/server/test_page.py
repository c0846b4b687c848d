"""The page at `/` in Chromium names the images that a user chooses, drops or pastes."""

import shutil
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from client.local import LocalServer
from tests.support.browser import Page, expected, guesses, name
from tests.support.clients import CAT, COFFEE, classify
from tests.support.servers import Serve

GONE = "The server does not answer. Is it still running?"
HAND_OVER = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[1], { type: "image/jpeg" }));
const init = { bubbles: true, cancelable: true };
"""
DROP = HAND_OVER + (
    'document.getElementById("zone").dispatchEvent('
    'new DragEvent("drop", { ...init, dataTransfer: transfer }));'
)
PASTE = HAND_OVER + (
    "document.body.dispatchEvent("
    'new ClipboardEvent("paste", { ...init, clipboardData: transfer }));'
)


def test_a_chosen_image_is_named(page: Page, server: LocalServer) -> None:
    page.choose(COFFEE)
    (card,) = page.cards(1)
    assert name(card) == "coffee.jpg"
    assert guesses(card) == expected(server, COFFEE)
    preview = "return arguments[0].naturalWidth"
    assert page.until(lambda: page.driver.execute_script(preview, page.one("img")), "the preview")
    assert card.find_element(By.CSS_SELECTOR, ".row .figure").text.endswith(" ms")
    meter = card.find_element(By.CSS_SELECTOR, "[role=meter]")
    figure = card.find_element(By.CSS_SELECTOR, ".guesses .figure").text
    assert meter.accessible_name == "espresso"
    assert meter.get_attribute("aria-valuetext") == figure
    filled = meter.find_element(By.TAG_NAME, "i").size["width"] / meter.size["width"]
    assert filled == pytest.approx(float(figure.split()[0]) / 100, abs=0.01)
    assert page.complaints() == []


def test_several_images_get_a_card_each(page: Page, server: LocalServer) -> None:
    page.choose(CAT, COFFEE)
    page.cards(2)
    page.choose(CAT, COFFEE)
    cards = page.cards(4)
    assert [name(card) for card in cards] == ["cat.jpg", "coffee.jpg"] * 2
    answers = {path.name: expected(server, path) for path in (CAT, COFFEE)}
    assert all(guesses(card) == answers[name(card)] for card in cards)
    assert page.complaints() == []
    page.one("#clear").click()
    assert not page.all(".card")
    assert not page.one("#results").is_displayed()


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["dropped", "pasted"])
def test_a_dropped_or_pasted_image_is_named(page: Page, server: LocalServer, script: str) -> None:
    page.hand_over(script, CAT)
    (card,) = page.cards(1)
    assert name(card) == "cat.jpg"
    assert guesses(card) == expected(server, CAT)
    assert page.complaints() == []


def test_a_bad_file_gets_the_servers_error(page: Page, server: LocalServer, tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("no image")
    page.choose(bad, COFFEE)
    refused, named = page.cards(2)
    error = classify(server, bad.read_bytes()).json()["error"]
    assert refused.find_element(By.CSS_SELECTOR, ".bad").text == error
    assert not refused.find_elements(By.TAG_NAME, "button"), "a retry would not help"
    page.until(lambda: refused.find_element(By.CLASS_NAME, "view").text == "No preview", "preview")
    assert guesses(named)[0] == "espresso"


def test_labels_and_file_names_are_text(page: Page, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    hostile.write_bytes(COFFEE.read_bytes())
    page.driver.execute_script(
        "const real = fetch; window.fetch = async (...a) => a[1].method"
        " ? Response.json([{ label: '<b>bold</b>', score: .5 }]) : real(...a);"
    )
    page.choose(hostile)
    (card,) = page.cards(1)
    assert name(card) == hostile.name
    assert guesses(card) == ["<b>bold</b>"]


@pytest.mark.slow
def test_the_page_sends_four_at_once_and_keeps_no_image(page: Page) -> None:
    page.driver.execute_script(
        "window.now = window.most = 0; window.kept = new Set();"
        "const [real, make, drop] = [fetch, URL.createObjectURL, URL.revokeObjectURL];"
        "window.fetch = async (...a) => {"
        "  most = Math.max(most, ++now); try { return await real(...a); } finally { now -= 1; } };"
        "URL.createObjectURL = (file) => { const url = make(file); kept.add(url); return url; };"
        "URL.revokeObjectURL = (url) => { kept.delete(url); drop(url); };"
    )
    page.choose(COFFEE)
    page.until(lambda: page.driver.execute_script("return kept.size") == 0, "preview released")
    page.choose(*[CAT, COFFEE] * 10)
    page.cards(21)
    assert page.driver.execute_script("return most") == 4
    page.one("#clear").click()
    assert page.driver.execute_script("return kept.size") == 0


@pytest.mark.slow
def test_a_drop_without_a_file_is_explained(page: Page) -> None:
    page.driver.execute_script(
        "dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"
    )
    assert "Only image files" in page.one("#hint").text
    assert not page.all(".card")


@pytest.mark.slow
def test_a_deleted_file_is_not_blamed_on_the_server(page: Page, tmp_path: Path) -> None:
    deleted = Path(shutil.copy(CAT, tmp_path / "deleted.jpg"))
    page.driver.execute_script(
        "const real = add; window.add = (files) => { window.held = [...files]; };"
        "window.release = () => real(held);"
    )
    page.choose(deleted)
    deleted.unlink()
    page.driver.execute_script("release()")
    (card,) = page.cards(1)
    assert "cannot be read" in card.find_element(By.CLASS_NAME, "bad").text


def test_images_can_be_retried_after_the_server_was_down(blank: Page, serve: Serve) -> None:
    server = serve()
    blank.open(server.url)
    server.kill()
    blank.choose(CAT, COFFEE, COFFEE)
    cards = blank.cards(3)
    assert [card.find_element(By.CLASS_NAME, "bad").text for card in cards] == [GONE] * 3
    again = serve(env={"MLSERVER_HTTP_PORT": str(server.http_port)}, ready=False)
    again.http_port = server.http_port
    again.wait()
    cards[2].find_element(By.TAG_NAME, "button").click()
    assert guesses(blank.cards(3)[2]) == expected(again, COFFEE)
    assert blank.one("#notice").text.startswith("The weights 'sample' are served")
    assert blank.one("#retry").text == "Try all 2 again"
    blank.one("#retry").click()
    assert all(guesses(card) for card in blank.cards(3))
    assert not blank.one("#retry").is_displayed()
