"""Chromium, and the page at `/` as its user sees it."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from client.local import LocalServer
from tests.support.clients import classify, labels

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --no-first-run"
    " --disable-sync --disable-component-update --disable-quic"
)


DEADLINE = 20
"""Timeout of each condition in seconds."""


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
        """Return the cards, newest first, once there are `count` and all have an answer."""
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
        """Return the URLs requested since the last call."""
        messages = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return the console messages since the last call."""
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
    """A clean browser window."""
    page = Page(browser)
    browser.get("about:blank")
    page.resize(1040)
    page.prefer("light")
    page.requests(), page.complaints()
    return page


@pytest.fixture
def page(blank: Page, server: LocalServer) -> Iterator[Page]:
    """The page of the shared server; it must send requests to this server only."""
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
    """Return the server's own labels of a file."""
    return labels(classify(server, path.read_bytes(), params={"top_k": top_k}))
