"""MLServer hears of SIGTERM and Ctrl-C."""

import signal

from mlserver import server

FAULT = (
    "uvicorn takes SIGINT and SIGTERM for itself since 0.29, where MLServer's override of "
    "install_signal_handlers is no longer called, so that MLServer.stop never runs in time."
)
UPSTREAM = "https://github.com/encode/uvicorn/pull/1600, which MLServer has not followed"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Gives the signals back to the event loop, which needs only that a handler is installed."""
    for number in server.HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)
