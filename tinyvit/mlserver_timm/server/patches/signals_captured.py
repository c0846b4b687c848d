"""MLServer alone hears of SIGTERM and Ctrl-C, and once."""

import signal

from mlserver import server

FAULT = (
    "uvicorn takes SIGINT and SIGTERM too since 0.29, where MLServer's override of "
    "install_signal_handlers is no longer called, and raises them once more as the metrics server "
    "ends: Ctrl-C then counts twice, and requests that are under way are dropped."
)
UPSTREAM = "https://github.com/encode/uvicorn/pull/1600, which MLServer has not followed"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Gives the signals back to the event loop, which needs only that a handler is installed."""
    for number in server.HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)
