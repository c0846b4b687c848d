"""The page at `/`, in a real Chromium: pictures handed over are named."""

import shutil
from pathlib import Path

import pytest
import requests
from selenium.webdriver.common.by import By

from client.local import LocalServer
from tests.support.browser import CAT, COFFEE, Page, expected, guesses, name
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


def test_a_chosen_picture_is_named(page: Page, server: LocalServer) -> None:
    page.choose(COFFEE)
    (card,) = page.cards(1)
    assert name(card) == "coffee.jpg"
    assert guesses(card) == expected(server, COFFEE)
    assert page.until(
        lambda: page.driver.execute_script("return arguments[0].naturalWidth", page.one("img")),
        "the preview",
    )
    assert card.find_element(By.CSS_SELECTOR, ".row .figure").text.endswith(" ms")
    meter = card.find_element(By.CSS_SELECTOR, "[role=meter]")
    figure = card.find_element(By.CSS_SELECTOR, ".guesses .figure").text
    assert meter.accessible_name == "espresso"
    assert meter.get_attribute("aria-valuetext") == figure
    filled = meter.find_element(By.TAG_NAME, "i").size["width"] / meter.size["width"]
    assert filled == pytest.approx(float(figure.split()[0]) / 100, abs=0.01)
    assert page.complaints() == []


def test_several_pictures_get_a_card_each(page: Page, server: LocalServer) -> None:
    page.choose(CAT, COFFEE)
    page.cards(2)
    page.choose(*[CAT, COFFEE] * 4)
    cards = page.cards(10)
    assert [name(card) for card in cards] == ["cat.jpg", "coffee.jpg"] * 5
    answers = {"cat.jpg": expected(server, CAT), "coffee.jpg": expected(server, COFFEE)}
    assert all(guesses(card) == answers[name(card)] for card in cards)
    assert page.complaints() == []
    page.one("#clear").click()
    assert not page.all(".card")
    assert not page.one("#results").is_displayed()


def test_at_most_four_are_sent_at_once_and_none_is_kept(page: Page) -> None:
    page.driver.execute_script(
        "window.now = window.most = 0; window.kept = new Set();"
        "const [real, make, drop] = [fetch, URL.createObjectURL, URL.revokeObjectURL];"
        "window.fetch = async (...a) => {"
        "  most = Math.max(most, ++now); try { return await real(...a); } finally { now -= 1; } };"
        "URL.createObjectURL = (file) => { const url = make(file); kept.add(url); return url; };"
        "URL.revokeObjectURL = (url) => { kept.delete(url); drop(url); };"
    )
    page.choose(COFFEE)
    page.until(lambda: page.driver.execute_script("return kept.size") == 0, "shown, let go")
    page.choose(*[CAT, COFFEE] * 10)
    page.cards(21)
    assert page.driver.execute_script("return most") == 4
    page.one("#clear").click()
    assert page.driver.execute_script("return kept.size") == 0


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["dropped", "pasted"])
def test_a_picture_handed_over_is_named(page: Page, server: LocalServer, script: str) -> None:
    page.hand_over(script, CAT)
    (card,) = page.cards(1)
    assert name(card) == "cat.jpg"
    assert guesses(card) == expected(server, CAT)
    assert page.complaints() == []


def test_dropping_no_file_is_explained(page: Page) -> None:
    page.driver.execute_script(
        "dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"
    )
    assert "no file" in page.one("#hint").text
    assert not page.all(".card")


def test_a_bad_file_gets_the_servers_sentence(
    page: Page, server: LocalServer, tmp_path: Path
) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("no picture")
    page.choose(bad, COFFEE)
    refused, named = page.cards(2)
    answer = requests.post(
        f"{server.url}/v2/models/tinyvit/classify", data=bad.read_bytes(), timeout=30
    )
    assert answer.status_code == 400
    assert refused.find_element(By.CSS_SELECTOR, ".bad").text == answer.json()["error"]
    assert not refused.find_elements(By.TAG_NAME, "button"), "another try would not help"
    page.until(lambda: refused.find_element(By.CLASS_NAME, "view").text == "No preview", "preview")
    assert guesses(named)[0] == "espresso"


def test_a_file_that_is_gone_is_not_blamed_on_the_server(page: Page, tmp_path: Path) -> None:
    lost = Path(shutil.copy(CAT, tmp_path / "lost.jpg"))
    page.driver.execute_script(
        "const real = add; window.add = (files) => { window.held = [...files]; };"
        "window.release = () => real(held);"
    )
    page.choose(lost)
    lost.unlink()
    page.driver.execute_script("release()")
    (card,) = page.cards(1)
    assert "cannot be read" in card.find_element(By.CLASS_NAME, "bad").text


def test_labels_and_names_are_text(page: Page, tmp_path: Path) -> None:
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


def test_a_server_that_is_gone_and_comes_back(blank: Page, serve: Serve) -> None:
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
    assert blank.one("#notice").text.startswith("The weights 'sample' answer")
    assert blank.one("#retry").text == "Try all 2 again"
    blank.one("#retry").click()
    assert all(guesses(card) for card in blank.cards(3))
    assert not blank.one("#retry").is_displayed()
