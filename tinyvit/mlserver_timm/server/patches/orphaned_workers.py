"""Workers end with the process that started them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

FAULT = (
    "Workers go on for ever, with all their memory, when the main process has ended without "
    "stopping them, as on SIGKILL, SIGHUP, SIGUSR1 or for lack of memory."
)
UPSTREAM = "unreported; tests/patches/test_orphaned_workers.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)
