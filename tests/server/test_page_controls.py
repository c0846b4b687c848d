"""The page's controls, texts and styles, in a real Chromium."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import requests
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from client.local import LocalServer
from tests.support.browser import Page, expected, guesses
from tests.support.clients import CAT, COFFEE
from tests.support.programs import output_of

pytestmark = pytest.mark.slow

CONTRAST = """
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
};
return [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility())
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()))
  .map((e) => {
    const both = [getComputedStyle(e).color, ground(e)].map(luminance).sort((a, b) => b - a);
    return [(both[0] + .05) / (both[1] + .05), e.outerHTML.slice(0, 80)];
  });
"""


def test_the_keyboard_operates_everything(page: Page) -> None:
    page.driver.execute_script(
        "window.opened = 0; files.addEventListener('click',"
        " (event) => { event.preventDefault(); opened += 1; });"
    )
    page.one("body").send_keys(Keys.TAB)
    zone = page.driver.switch_to.active_element
    assert zone.get_attribute("id") == "zone"
    assert zone.value_of_css_property("outline-style") == "solid"
    assert zone.value_of_css_property("outline-width") == "3px"
    for count, key in enumerate((Keys.ENTER, Keys.SPACE), start=1):
        zone.send_keys(key)
        page.until(lambda count=count: page.driver.execute_script("return opened") == count, key)
    zone.send_keys(Keys.TAB)
    select = page.driver.switch_to.active_element
    assert select.get_attribute("id") == "count"
    select.send_keys("7")
    assert "top_k=7" in page.one("#shell").text


def test_the_number_of_labels_can_be_chosen(page: Page, server: LocalServer) -> None:
    count = Select(page.one("#count"))
    assert [option.text for option in count.options] == [str(k) for k in range(1, 11)]
    assert count.first_selected_option.text == "5"
    page.choose(CAT)
    (card,) = page.cards(1)
    for k in (10, 1):
        count.select_by_visible_text(str(k))
        assert guesses(card) == expected(server, CAT, k)
        assert f"top_k={k}'" in page.one("#shell").text
        assert f'"top_k": {k}' in page.one("#python").text


def test_never_more_labels_than_classes(page: Page) -> None:
    page.driver.execute_script("introduce(model, { parameters: { weights: 'pets', classes: 3 } })")
    count = Select(page.one("#count"))
    assert [option.text for option in count.options] == ["1", "2", "3"]
    assert count.first_selected_option.text == "3"
    assert not page.one("#notice").is_displayed()


def test_it_names_the_served_weights(page: Page, server: LocalServer) -> None:
    facts = requests.get(f"{server.url}/v2/models/tinyvit", timeout=30).json()["parameters"]
    served = page.one("#served").text
    assert facts["fallback"]
    assert page.one("#notice").is_displayed()
    for fact in ("weights", "architecture", "engine", "precision"):
        assert facts[fact] in served
    assert f"{facts['classes']} classes" in served


@pytest.mark.parametrize(
    ("kind", "command"), [("shell", ["bash", "-ec"]), ("python", [sys.executable, "-c"])]
)
def test_the_copied_commands_run(
    page: Page, server: LocalServer, tmp_path: Path, kind: str, command: Sequence[str]
) -> None:
    page.cdp(
        "Browser.grantPermissions",
        origin=server.url,
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
    )
    button = page.one(f"[data-copy={kind}]")
    button.click()
    page.until(lambda: button.text == "Copied", "the button says so")
    text = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert text == page.one(f"#{kind}").get_attribute("textContent")
    shutil.copy(COFFEE, tmp_path / "image.jpg")
    output = output_of(*command, text, cwd=tmp_path, timeout=60)
    assert all(label in output for label in expected(server, COFFEE))


def test_copying_works_without_the_clipboard_interface(page: Page) -> None:
    page.driver.execute_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "addEventListener('copy', () => { window.copied = String(getSelection()); });"
    )
    page.one("[data-copy=shell]").click()
    assert page.driver.execute_script("return copied") == page.one("#shell").text


@pytest.mark.parametrize("width", [360, 1040])
def test_nothing_is_wider_than_the_window(page: Page, tmp_path: Path, width: int) -> None:
    bad = tmp_path / f"{'long-name' * 20}.jpg"
    bad.write_text("no image")
    page.resize(width, phone=width < 500)
    page.choose(CAT, COFFEE, bad)
    page.cards(3)
    html = page.one("html")
    assert html.get_property("scrollWidth") == html.get_property("clientWidth") <= width
    assert page.one("#camera").is_displayed() == (width < 500)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Page, tmp_path: Path, scheme: str) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    page.prefer(scheme)
    page.choose(CAT, bad)
    page.cards(2)
    body = page.one("body").value_of_css_property("background-color")
    assert (min(int(v) for v in body[5:-1].split(",")[:3]) < 128) == (scheme == "dark")
    found = page.driver.execute_script(CONTRAST)
    assert len(found) > 20, found
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_screen_readers_get_names_and_results(page: Page) -> None:
    page.resize(360, phone=True)
    page.choose(COFFEE)
    (card,) = page.cards(1)
    names = {
        element.get_attribute("id")
        or element.get_attribute("data-copy"): element.accessible_name.strip()
        for element in page.all("button, select")
        if element.is_displayed()
    }
    assert names == {
        "zone": "Choose images one or several",
        "camera": "Take a photo",
        "count": "Show top",
        "clear": "Clear",
        "shell": "Copy the shell command",
        "python": "Copy the Python program",
    }
    assert page.one("#photo").get_attribute("capture") == "environment"
    assert page.one("img").get_attribute("alt") == "Preview of coffee.jpg"
    assert card.aria_role == "listitem"
    assert page.one(".guesses").aria_role == "list"
    assert page.one("#log").aria_role == "log"
    assert page.one("#log").get_attribute("textContent").startswith("coffee.jpg: espresso, ")
    assert page.all("h1") and page.one("html").get_attribute("lang") == "en"
