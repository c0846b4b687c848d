"""What a run reports: the log of a failed test's servers, and tests that are too slow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.local import LocalServer

LOG_END = 8000
"""Characters of a server's log that a failed test shows."""

log_starts = pytest.StashKey[dict[Path, int]]()
"""The size of each server's log at the start of a test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the limit that CI checks."""
    parser.addoption(
        "--max-duration",
        type=float,
        metavar="SECONDS",
        help="fail the run if a test without the markers slow and own_server takes longer",
    )


def watch_log(item: pytest.Item, log: Path) -> None:
    """Show what is written to this log from now on if the test fails."""
    item.stash.setdefault(log_starts, {})[log] = log.stat().st_size if log.exists() else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Watch the logs of the shared servers that the test uses."""
    result = yield
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, LocalServer) and value.log:
            watch_log(item, value.log)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the logs to the report of a failed test."""
    report: pytest.TestReport = yield
    if report.failed:
        for log, start in item.stash.get(log_starts, {}).items():
            text = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
            report.sections.append((f"log of the server, {log.name}", text[-LOG_END:]))
    return report


class SlowTests:
    """Collects the tests that take longer than the limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._found: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that is too slow for its markers; a server's start takes seconds."""
        if (
            report.when == "call"
            and report.duration > self._limit
            and "slow" not in report.keywords
        ):
            self._found.append(f"{report.nodeid}: {report.duration:.1f} s")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if there are any."""
        if self._found:
            print(f"\nOver {self._limit:g} s without the marker slow:", *self._found, sep="\n  ")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """Check durations in the process that gets all reports."""
    limit = config.getoption("--max-duration")
    if limit and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SlowTests(limit))
