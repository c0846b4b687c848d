"""Every dead worker is replaced, and leaves nothing behind."""

import os
import signal
from pathlib import Path

from client.local import LocalServer
from tests.support.clients import workers
from tests.support.probes import OURS, answer, happens, is_ready, repository, tell, until
from tests.support.servers import Serve


def both_replaced(server: LocalServer) -> bool:
    """After two workers have died while the main process was not looking."""
    before = workers(server)
    assert len(before) == 2
    os.kill(server.process.pid, signal.SIGSTOP)
    until(lambda: _states(server.process.pid) == {"T"})
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(_states(pid) == {"Z"} for pid in before))
    os.kill(server.process.pid, signal.SIGCONT)
    until(lambda: "is now ready" in server.output(), 30)
    return happens(lambda: server.output().count("is now ready") == 2, within=5)


def _states(pid: int) -> set[str]:
    """Of all threads of a process."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rsplit(")", 1)[1].split()[0] for stat in stats}


def test_both_are_replaced(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=2))
    assert both_replaced(server)
    until(lambda: is_ready(server))
    assert len({answer(server, "pid") for _ in range(4)}) == 2


def test_nothing_is_left_of_the_dead(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=1))

    def held() -> list[int]:
        proc = Path(f"/proc/{server.process.pid}")
        return [len(list((proc / what).iterdir())) for what in ("fd", "task")]

    for count in range(1, 8):
        assert tell(server, "die").status_code == 503
        until(lambda n=count: server.output().count("is now ready") == n, 30)
        assert answer(server, "echo:x") == "x"
        if count == 1:
            files, threads = held()
    # Pipes of the last few go with the next collection of garbage; MLServer keeps 5 of each worker.
    until(lambda: held()[0] <= files + 10 and held()[1] <= threads + 2, 15)


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=2, without="dead_workers"))
    assert not both_replaced(server)
