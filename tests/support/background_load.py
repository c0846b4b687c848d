"""Load on a server, its outcomes, and changes of settings during it."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests

from client.local import LocalServer
from tests.support.client_threads import ClientThreads
from tests.support.clients import (
    COFFEE,
    LABEL,
    assert_sentence,
    body,
    classify,
    infer,
    labels,
    tensor,
    until,
)
from tests.support.processes import is_running

STOPPED_WITHIN = 15.0
IMAGE = COFFEE.read_bytes()
MEGABYTE = 2**20

ROUTES: dict[str, Callable[[LocalServer], requests.Response]] = {
    "infer": lambda server: infer(server, body(tensor(IMAGE))),
    "classify": lambda server: classify(server, IMAGE),
}


def best(response: requests.Response) -> str:
    return labels(response)[0]


class Load(ClientThreads):
    """Closed-loop clients over both routes."""

    def __init__(self, server: LocalServer, clients: int = 6) -> None:
        super().__init__([partial(self._ask, i) for i in range(clients)])
        self.server = server
        self.outcomes: list[str] = []
        """`right`, `wrong`, a status with its error, or the name of an exception."""

    def _ask(self, index: int) -> None:
        route = list(ROUTES.values())[index % len(ROUTES)]
        while not self.ended.is_set():
            try:
                response = route(self.server)
            except requests.RequestException as error:
                self.outcomes.append(type(error).__name__)
                time.sleep(0.02)
                continue
            if response.status_code == 200:
                self.outcomes.append("right" if best(response) == LABEL else "wrong")
            else:
                assert_sentence(response.json()["error"])
                self.outcomes.append(f"{response.status_code} {response.json()['error']}")
                time.sleep(0.02)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.outcomes)

    def until(self, right: int, within: float = 60) -> None:
        """Wait for `right` further right answers."""
        goal = self.counts["right"] + right
        until(lambda: self.counts["right"] >= goal, within)


def is_ready(server: LocalServer) -> bool:
    """Return whether both readiness endpoints say 200."""
    return all(
        requests.get(f"{server.url}/v2/{path}", timeout=10).ok
        for path in ("health/ready", "models/tinyvit/ready")
    )


def gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def altered(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file atomically, as an editor does."""
    content = json.loads((folder / name).read_text())
    draft = folder / f".{name}"
    draft.write_text(json.dumps(change(content)))
    os.replace(draft, folder / name)


def extra(**values: Any) -> Callable[[Any], Any]:
    """Return a change of `parameters.extra` for model-settings.json."""

    def change(content: Any) -> Any:
        content["parameters"]["extra"] |= values
        return content

    return change
