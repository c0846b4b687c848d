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
        help="fail each test without the marker slow that takes longer",
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
    """Fail a test that is too slow for its markers, and add the logs to a failed test's report."""
    report: pytest.TestReport = yield
    limit = item.config.getoption("--max-duration")
    is_checked = limit and report.when == "call" and not item.get_closest_marker("slow")
    if is_checked and report.passed and report.duration > limit:
        report.outcome = "failed"
        report.longrepr = f"{report.duration:.1f} s without the marker slow"
    if report.failed:
        for log, start in item.stash.get(log_starts, {}).items():
            text = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
            report.sections.append((f"log of the server, {log.name}", text[-LOG_END:]))
    return report
