"""The API docs in Chromium."""

import pytest
import requests
from selenium.webdriver.common.by import By

from client.local import LocalServer
from tests.support.browser import Page

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("path", "described"),
    [
        ("/v2/docs", "/v2/models/{model_name}/infer"),
        ("/v2/models/tinyvit/docs", "/v2/models/tinyvit/classify"),
    ],
)
def test_docs_load_nothing_from_elsewhere(
    blank: Page, server: LocalServer, path: str, described: str
) -> None:
    blank.driver.get(server.url + path)
    blank.until(lambda: described in shown(blank), "the operations")
    assert "MLServer API Docs" in blank.driver.title
    strangers = [url for url in blank.requests() if not url.startswith((server.url, "data:"))]
    assert not strangers
    assert not blank.complaints()


def shown(page: Page) -> list[str]:
    """The paths of the operations on the page."""
    paths = page.driver.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")
    return [path.get_attribute("data-path") for path in paths]


def test_classify_can_be_unfolded_and_tried(blank: Page, server: LocalServer) -> None:
    blank.driver.get(server.url + "/v2/models/tinyvit/docs")
    blank.until(lambda: blank.all("[id$=-classify]"), "the operation")
    blank.one("[id$=-classify] .opblock-summary").click()
    blank.until(lambda: blank.all("[id$=-classify] .try-out__btn"), "the button")
    assert "best first" in blank.one("[id$=-classify]").text


def test_no_other_file_is_served(server: LocalServer) -> None:
    assert requests.get(f"{server.url}/v2/docs/swagger-ui-bundle.js", timeout=20).ok
    for path in ("index.html", "__init__.py", "..%2f__init__.py", "%2fetc%2fpasswd"):
        assert requests.get(f"{server.url}/v2/docs/{path}", timeout=20).status_code == 404


def test_ranges_are_ignored(server: LocalServer) -> None:
    """A long list of them would cost its length squared."""
    ranges = ",".join(f"{2 * i}-{2 * i}" for i in range(5000))
    headers = {"Range": f"bytes={ranges}"}
    answer = requests.get(f"{server.url}/v2/docs/swagger-ui.css", headers=headers, timeout=20)
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/css")
    assert "Range" not in "".join(answer.headers)
