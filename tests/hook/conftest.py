"""Keep the test's process alive when a server in it stops."""

import threading

import pytest

from mlserver_timm.server import lifecycle
from tests.support.in_process import Ended


@pytest.fixture(autouse=True)
def _process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(failure: Exception | None) -> None:
        if threading.current_thread() is threading.main_thread():  # not the one that watches a stop
            raise Ended(failure)

    monkeypatch.setattr(lifecycle, "end_process", end)
