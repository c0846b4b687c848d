"""ConfigMap and Deployment as kubectl renders them, run by `podman kube play`.

Podman 4.3 has no native sidecars, so the server becomes one of two containers, and it runs no HTTP
probes. The pod's only network is a loopback device with a second address, which stands for the
address at which other pods reach it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients import until
from tests.support.docker_engine import Engine
from tests.support.kustomize import one, rendered
from tests.support.paths import ROOT
from tests.support.podman import Podman
from tests.support.programs import output_of, run_program
from tests.support.traffic import LABEL

ADDRESS = "10.88.0.1"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
NGINX = """
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light
STOPSIGNAL SIGQUIT
"""


@pytest.fixture(scope="module")
def nginx_image(engine: Engine, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's nginx under the manifest's image name, with the same stop signal."""
    pod = one("Deployment", rendered())["spec"]["template"]["spec"]
    (name,) = [each["image"] for each in pod["containers"]]
    folder = tmp_path_factory.mktemp("nginx-image")
    (folder / "Dockerfile").write_text(f"FROM {base}\n{NGINX}")
    engine.build(folder, folder / "Dockerfile", name)
    return name


@pytest.fixture(scope="module")
def podman(
    engine: Engine, image: str, nginx_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Podman]:
    podman = Podman(tmp_path_factory.mktemp("podman"))
    try:
        podman.take_from(engine, image, nginx_image)
        yield podman
    finally:
        podman.close()


def playable() -> list[dict[str, Any]]:
    """Return the objects without what podman 4.3 cannot run."""
    objects = rendered()
    deployment = one("Deployment", objects)
    pod = deployment["spec"]["template"]["spec"]
    pod["containers"] = [*pod.pop("initContainers"), *pod["containers"]]
    for container in pod["containers"]:
        # Ports would be opened on this machine's own addresses.
        for name in ("restartPolicy", *PROBES, "lifecycle", "ports"):
            container.pop(name, None)
    deployment["spec"]["replicas"] = 1
    return [one("ConfigMap", objects), deployment]


class Pod:
    """The running pod, seen from inside its network."""

    def __init__(self, podman: Podman, folder: Path) -> None:
        self._podman = podman
        manifest = folder / "play.yaml"
        manifest.write_text(yaml.safe_dump_all(playable()))
        print(podman("kube", "play", "--network", "none", manifest))
        process = podman("inspect", "--format", "{{.State.Pid}}", "tinyvit-pod-0-nginx")
        self._enter = ["nsenter", "-t", process, "-n"]
        output_of(*self._enter, "ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        until(lambda: self.status("/v2/health/ready") == "200", 60)
        print(podman("ps", "--pod", "--format", "{{.Names}}\t{{.Image}}\t{{.Status}}"))

    def status(self, path: str, port: int = 8080) -> str:
        """Return the status of a request from another pod; 000 if nothing listens."""
        return self.curl(path, port, "-o", "/dev/null", "-w", "%{http_code}")

    def curl(self, path: str, port: int, *options: str) -> str:
        command = ["curl", "-s", "-m", "20", *options, f"http://{ADDRESS}:{port}{path}"]
        return run_program(*self._enter, *command).output

    def inside(self, container: str, command: str) -> str:
        return self._podman("exec", f"tinyvit-pod-0-{container}", "sh", "-c", command)


@pytest.fixture(scope="module")
def pod(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    return Pod(podman, tmp_path_factory.mktemp("play"))


def test_the_pod_names_the_cup(pod: Pod) -> None:
    image = f"@{ROOT / 'imgs' / 'coffee.jpg'}"
    answer = pod.curl("/v2/models/tinyvit/classify", 8080, "--data-binary", image)
    assert answer.startswith(f'[{{"label":"{LABEL}"')


@pytest.mark.parametrize("port", [9080, 9081, 9082])
def test_the_servers_own_ports_are_closed(pod: Pod, port: int) -> None:
    assert pod.status("/v2/health/ready", port) == "000"


@pytest.mark.parametrize("container", ["tinyvit", "nginx"])
def test_containers_have_no_privileges(pod: Pod, container: str) -> None:
    assert pod.inside(container, "id -u") == "1000"
    status = pod.inside(container, "cat /proc/1/status").splitlines()
    rights = [line.split()[1] for line in status if line.startswith("Cap")]
    assert rights == ["0000000000000000"] * 5
    assert "NoNewPrivs:\t1" in status
    assert "Read-only" in pod.inside(container, "touch /opt/file 2>&1 || true")


def test_both_containers_stop_by_themselves(pod: Pod, podman: Podman) -> None:
    """nginx first, as a kubelet does it; a killed container has status 137. The module's last."""
    for container in ("tinyvit-pod-0-nginx", "tinyvit-pod-0-tinyvit"):
        podman("stop", "-t", "60", container)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
