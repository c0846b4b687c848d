"""The page at `/`, in a real Chromium."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from conftest import ROOT, Serve
from local import LocalServer

CAT, COFFEE = ROOT / "imgs/cat.jpg", ROOT / "imgs/coffee.jpg"
GONE = "The server does not answer. Is it still running?"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --no-first-run"
    " --disable-sync --disable-component-update --disable-quic"
)
DEADLINE = 20
"""Seconds until something on the page must have happened."""

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


class Page:
    """The page in a browser, as its user sees it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url + "/")
        self.until(lambda: "classes" in self.one("#served").text, "what is served")

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return WebDriverWait(self.driver, DEADLINE, 0.05).until(
            lambda _: condition(), f"{what}\n{self.one('body').text}"
        )

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def choose(self, *paths: Path) -> None:
        self.one("#files").send_keys("\n".join(str(path) for path in paths))

    def hand_over(self, script: str, path: Path) -> None:
        self.driver.execute_script(script, base64.b64encode(path.read_bytes()).decode(), path.name)

    def cards(self, count: int) -> list[Any]:
        """The cards, newest first, once there are so many and none is waiting any more."""
        self.until(
            lambda: len(self.all(".card")) == count and not self.all(".card.busy"), f"{count} cards"
        )
        return self.all(".card")

    def resize(self, width: int, height: int = 800, phone: bool = False) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])

    def requests(self) -> list[str]:
        """The addresses asked for since the last call."""
        messages = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if not path]
    if missing:
        pytest.fail(f"{' and '.join(missing)} must be installed for this test: make programs")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def blank(browser: webdriver.Chrome) -> Page:
    """A browser window without traces of another test."""
    page = Page(browser)
    browser.get("about:blank")
    page.resize(1040)
    page.prefer("light")
    page.requests(), page.complaints()
    return page


@pytest.fixture
def page(blank: Page, server: LocalServer) -> Iterator[Page]:
    """The page of the shared server; it must ask nobody else for anything."""
    blank.open(server.url)
    yield blank
    strangers = [
        url for url in blank.requests() if not url.startswith((server.url, "blob:", "data:"))
    ]
    assert not strangers


def guesses(card: Any) -> list[str]:
    return [
        guess.find_element(By.TAG_NAME, "span").text
        for guess in card.find_elements(By.CSS_SELECTOR, ".guesses li")
        if guess.is_displayed()
    ]


def name(card: Any) -> str:
    return card.find_element(By.TAG_NAME, "h3").text


def expected(server: LocalServer, path: Path, top_k: int = 5) -> list[str]:
    image = base64.b64encode(path.read_bytes()).decode()
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [1], "data": [image]}
    request = {"inputs": [tensor], "parameters": {"top_k": top_k}}
    answer = requests.post(f"{server.url}/v2/models/tinyvit/infer", json=request, timeout=30)
    answer.raise_for_status()
    return answer.json()["outputs"][0]["data"]


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
    assert blank.one("#notice").text.startswith("Fallback")
    assert blank.one("#retry").text == "Try all 2 again"
    blank.one("#retry").click()
    assert all(guesses(card) for card in blank.cards(3))
    assert not blank.one("#retry").is_displayed()


def test_the_keyboard_does_it_all(page: Page) -> None:
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
    page.driver.execute_script("introduce({ parameters: { weights: 'pets', classes: 3 } })")
    count = Select(page.one("#count"))
    assert [option.text for option in count.options] == ["1", "2", "3"]
    assert count.first_selected_option.text == "3"
    assert not page.one("#notice").is_displayed()


def test_it_tells_which_weights_answer(page: Page, server: LocalServer) -> None:
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
    shutil.copy(COFFEE, tmp_path / "picture.jpg")
    run = subprocess.run(
        [*command, text], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert all(label in run.stdout for label in expected(server, COFFEE))


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
    bad.write_text("no picture")
    page.resize(width, phone=width < 500)
    page.choose(CAT, COFFEE, bad)
    page.cards(3)
    html = page.one("html")
    assert html.get_property("scrollWidth") == html.get_property("clientWidth") <= width
    assert page.one("#camera").is_displayed() == (width < 500)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Page, tmp_path: Path, scheme: str) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    page.prefer(scheme)
    page.choose(CAT, bad)
    page.cards(2)
    body = page.one("body").value_of_css_property("background-color")
    assert (min(int(v) for v in body[5:-1].split(",")[:3]) < 128) == (scheme == "dark")
    found = page.driver.execute_script(CONTRAST)
    assert len(found) > 20
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_controls_have_names_and_results_are_spoken(page: Page) -> None:
    page.resize(360, phone=True)
    page.choose(COFFEE)
    (card,) = page.cards(1)
    names = {
        element.get_attribute("id") or element.get_attribute("data-copy"): element.accessible_name
        for element in page.all("button, select")
        if element.is_displayed()
    }
    assert names == {
        "zone": "Choose pictures one or several",
        "camera": "Take a picture",
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
