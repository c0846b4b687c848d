"""Servers in containers, on the machine's own network and on free loopback ports."""

from dataclasses import dataclass, field

import requests

from client.local import free_ports
from tests.support.clients import until
from tests.support.docker_engine import Engine

REVISION = "0123456789abcdef"
"""Label of the image that the tests build."""

# A cluster's limits for a container; the network and all else are in the image.
CONFINED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--user", "1000", "--memory", "384m", "--memory-swap", "384m", "--cpus", "1"),
)


@dataclass
class Container:
    """A server in a container, which the constructor starts."""

    engine: Engine
    image: str
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ports: list[int] = field(default_factory=lambda: free_ports(3))

    def __post_init__(self) -> None:
        names = ("HTTP", "GRPC", "METRICS")
        variables = ["-e", "MLSERVER_HOST=127.0.0.1"]
        for name, port in zip(names, self.ports, strict=True):
            variables += ["-e", f"MLSERVER_{name}_PORT={port}"]
        self.identifier = self.engine(
            *("run", "-d", "--network", "host", *variables, *self.options),
            *(self.image, *self.command),
        )

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine("rm", "-f", self.identifier)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def log(self) -> str:
        return self.engine.attempt("logs", self.identifier)[1]

    def inspect(self, template: str) -> str:
        return self.engine("inspect", "--format", template, self.identifier)

    def wait(self) -> None:
        """Return when the server is ready."""
        until(self._ready, 300)

    def _ready(self) -> bool:
        assert self.inspect("{{.State.Running}}") == "true", self.log
        return requests.get(f"{self.url}/v2/health/ready", timeout=5).ok

    def memory(self) -> int:
        """Return the proportional set size of the processes, in bytes."""
        listed = self.engine("top", self.identifier, "-eo", "pid").splitlines()[1:]
        return sum(proportional(int(pid)) for pid in listed)


def proportional(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        (line,) = [line for line in lines if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024
