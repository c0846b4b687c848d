"""Clients that ask one after the other, over connections that they keep."""

import base64
import threading
from collections import Counter
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.support.nginx import until
from tests.support.paths import ROOT

IMAGE = (ROOT / "imgs" / "coffee.jpg").read_bytes()
LABEL = "espresso"
BODY = {
    "inputs": [
        {
            "name": "payload",
            "datatype": "BYTES",
            "shape": [1],
            "data": [base64.b64encode(IMAGE).decode()],
        }
    ]
}


ONCE_MORE = Retry(total=1, read=1, connect=0, status=0, allowed_methods=None, backoff_factor=0)
"""A kept connection may be closed, as nginx does at a reload, while the next request is on its
way (RFC 9112, section 9.3.1); what was answered, with 502 too, is not repeated."""


class Load:
    """Counts the answers by status, and the labels among them, until the block ends."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url = f"{url}/v2/models/tinyvit"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.statuses: Counter[int | str] = Counter()
        self.labels: Counter[str] = Counter()

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Waits for so many further answers."""
        goal = sum(self.statuses.values()) + count
        until(lambda: sum(self.statuses.values()) >= goal)

    def _run(self) -> None:
        turn = 0
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=ONCE_MORE))
            while not self._stop.is_set():
                turn += 1
                try:
                    answer = self._ask(session, plain=bool(turn % 2))
                except requests.RequestException as error:
                    self.statuses[repr(error)] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if answer.ok:
                    self.labels[best_label(answer.json())] += 1

    def _ask(self, session: requests.Session, plain: bool) -> requests.Response:
        if plain:
            return session.post(f"{self._url}/classify", data=IMAGE, timeout=30)
        return session.post(f"{self._url}/infer", json=BODY, timeout=30)


def best_label(answer: Any) -> str:
    if isinstance(answer, list):
        return answer[0]["label"]
    return answer["outputs"][0]["data"][0]
