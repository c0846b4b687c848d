"""Which of MLServer's processes this is."""

import multiprocessing

from mlserver.parallel.worker import Worker


def in_worker() -> bool:
    """Whether this process is one of the `parallel_workers`."""
    return isinstance(multiprocessing.current_process(), Worker)


def workers() -> list[Worker]:
    """The living worker processes that this process has started."""
    return [child for child in multiprocessing.active_children() if isinstance(child, Worker)]
