"""The shipped nginx before servers on other ports."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from client.local import free_ports
from tests.support.clients import until
from tests.support.paths import DEPLOY
from tests.support.processes import children_of
from tests.support.programs import output_of


class Front:
    """A running nginx; `servers` are the REST and gRPC ports of each."""

    def __init__(
        self, folder: Path, servers: Sequence[tuple[int, int]], access_log: bool = True
    ) -> None:
        self.folder = folder
        self._servers = servers
        self._logs_accesses = access_log
        self.http_port, self.grpc_port = free_ports(2)
        shipped = (DEPLOY / "nginx.conf").read_text()
        for port, ours in ((8080, self.http_port), (8081, self.grpc_port)):
            shipped = shipped.replace(f"listen {port}", f"listen 127.0.0.1:{ours}")
        (folder / "nginx.conf").write_text(shipped)
        self._write_replicas(down=())
        self._exit = ExitStack()
        self.process = self._exit.enter_context(running(self.url, folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def access_log(self) -> list[str]:
        return (self.folder / "access.log").read_text().splitlines()

    def _write_replicas(self, down: Sequence[int]) -> None:
        """Write the shipped file with these servers in place of its own."""
        lines = (DEPLOY / "replicas.conf").read_text().splitlines()
        first = {offset: f"    server 127.0.0.1:{9080 + offset} " for offset in range(2)}
        written = []
        for line in lines:
            for offset, start in first.items():
                if line.startswith(start):
                    written += [
                        f"    server 127.0.0.1:{ports[offset]} max_fails=0"
                        f"{' down' * (number in down)};"
                        for number, ports in enumerate(self._servers)
                    ]
            if not line.startswith("    server "):
                off = "    default 1;" in line and not self._logs_accesses
                written.append(line.replace("1", "0") if off else line)
        (self.folder / "replicas.conf").write_text("\n".join(written))

    def take_out(self, *numbers: int) -> None:
        """Mark servers as `down`, reload, and wait until the old workers have ended."""
        before = self._workers()
        self._write_replicas(numbers)
        output_of(*command(self.folder), "-s", "reload")
        until(lambda: not before & self._workers())

    def _workers(self) -> set[int]:
        return set(children_of(self.process.pid))

    def close(self) -> None:
        self._exit.close()


def command(folder: Path) -> list[str]:
    """Return the command for the nginx.conf in a folder."""
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


@contextmanager
def running(
    url: str, folder: Path, words: Sequence[str] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run nginx, by `words` or by the folder's nginx.conf, and yield it when the URL answers."""
    open_to_all(folder)
    with open(folder / "nginx.log", "wb") as log, open(folder / "access.log", "wb") as access:
        process = subprocess.Popen(words or command(folder), stdout=access, stderr=log)
    try:
        until(lambda: requests.get(url, timeout=5).status_code)
        yield process
    finally:
        process.terminate()  # killed, it would leave its workers
        process.wait(10)


def open_to_all(folder: Path) -> None:
    """Open a folder and its parents to other users: started by root, nginx writes as another."""
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            return
        each.chmod(0o755)
