"""The API docs in Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from selenium.webdriver.common.by import By

from client.local import LocalServer, free_ports
from tests.support.browser import Page
from tests.support.nginx import running
from tests.support.paths import ROOT
from tests.support.servers import Serve

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


PREFIX = "/models of vision"
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  server {{
    listen 127.0.0.1:{port};
    location "{prefix}/" {{ proxy_pass http://127.0.0.1:{server}/; }}
  }}
}}
"""


@pytest.fixture
def prefixed(serve: Serve, public_folder: Path) -> Iterator[str]:
    """The address of a server behind an nginx that strips a prefix."""
    server = serve(env={"MLSERVER_ROOT_PATH": PREFIX})
    (port,) = free_ports(1)
    text = NGINX.format(folder=public_folder, port=port, server=server.http_port, prefix=PREFIX)
    (public_folder / "nginx.conf").write_text(text)
    url = f"http://127.0.0.1:{port}{PREFIX.replace(' ', '%20')}"
    with running(url, public_folder):
        yield url


@pytest.mark.parametrize("path", ["/v2/docs", "/v2/models/tinyvit/docs"])
def test_docs_under_a_prefix(blank: Page, prefixed: str, path: str) -> None:
    """Script, style and document come from under the prefix, and the document names it."""
    blank.driver.get(prefixed + path)
    blank.until(lambda: shown(blank), "the operations")
    others = [u for u in blank.requests() if not u.startswith((f"{prefixed}/v2/", "data:"))]
    assert not others
    assert not blank.complaints()
    document = requests.get(f"{prefixed}{path}/dataplane.json", timeout=20).json()
    assert document["servers"] == [{"url": PREFIX.replace(" ", "%20")}]


def test_page_and_redirection_under_a_prefix(blank: Page, prefixed: str) -> None:
    blank.open(prefixed)
    blank.choose(ROOT / "imgs" / "cat.jpg")
    (card,) = blank.cards(1)
    assert "tiger cat" in card.text
    answer = requests.get(f"{prefixed}/v2/models/tinyvit/", allow_redirects=False, timeout=20)
    assert answer.status_code == 307
    location = f"{prefixed.removesuffix('/')}/v2/models/tinyvit"
    assert requests.compat.urljoin(answer.url, answer.headers["Location"]) == location
    assert requests.get(answer.url, timeout=20).json()["name"] == "tinyvit"


def test_documents_without_a_prefix_name_no_server(server: LocalServer) -> None:
    for path in ("/v2/docs", "/v2/models/tinyvit/docs"):
        document = requests.get(f"{server.url}{path}/dataplane.json", timeout=20).json()
        assert not document.get("servers")
