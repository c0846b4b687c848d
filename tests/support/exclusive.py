"""Tests with the marker `exclusive` run alone, the others side by side."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.locks import locked


@contextmanager
def place(folder: Path, exclusive: bool) -> Iterator[None]:
    """Take a place among the processes of one run, `exclusive` or shared.

    A process that waits for an exclusive place lets no other process in.
    """
    how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    with locked(folder / "door", fcntl.LOCK_EX) as door, locked(folder / "room", how):
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not hasattr(item.config, "workerinput"):  # one process runs all tests
        return (yield)
    folder = item.config.rootpath / ".pytest_cache" / "places"
    folder.mkdir(parents=True, exist_ok=True)
    with place(folder, item.get_closest_marker("exclusive") is not None):
        return (yield)
