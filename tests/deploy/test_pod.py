"""The pod's nginx before one server: a metrics port, and a stop that loses no request."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from client.local import LocalServer, free_ports
from tests.support.manifests import PODS, nginx_of, server_of
from tests.support.nginx import running
from tests.support.paths import DEPLOY
from tests.support.servers import Serve
from tests.support.traffic import LABEL, Load

pytestmark = pytest.mark.slow


@pytest.fixture
def pod(
    server: LocalServer, tmp_path: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """nginx with the manifest's command, and its three ports."""
    here = free_ports(3)
    theirs = (server.http_port, server.grpc_port, server.metrics_port)
    for path in (DEPLOY / "nginx.conf", DEPLOY / "kubernetes" / "replicas.conf"):
        text = path.read_text()
        for offset in range(3):
            text = text.replace(f"listen {8080 + offset}", f"listen 127.0.0.1:{here[offset]}")
            text = text.replace(f"127.0.0.1:{9080 + offset};", f"127.0.0.1:{theirs[offset]};")
        (tmp_path / path.name).write_text(text)
    command = [
        re.sub(r"/etc/tinyvit|/tmp", str(tmp_path), word)
        for word in nginx_of(PODS["kubernetes"])["command"]
    ]
    with running(f"http://127.0.0.1:{here[0]}", tmp_path, command) as nginx:
        yield nginx, here


def test_metrics_have_a_port_of_their_own(pod: tuple[object, list[int]]) -> None:
    rest, _, metrics = (f"http://127.0.0.1:{port}" for port in pod[1])
    assert requests.get(f"{rest}/v2/health/live", timeout=5).ok
    assert requests.get(f"{rest}/metrics", timeout=5).status_code == 404
    assert "tinyvit_decode_seconds" in requests.get(f"{metrics}/metrics", timeout=5).text
    assert requests.get(f"{metrics}/v2/health/ready", timeout=5).status_code == 404
    assert requests.get(f"{metrics}/alive", timeout=5).status_code == 204


def test_the_liveness_probe_fails_for_a_halted_server(serve: Serve) -> None:
    server = serve()
    probe = server_of(PODS["kubernetes"])["livenessProbe"]
    command = [sys.executable, *probe["exec"]["command"][1:]]
    command[-1] = command[-1].replace("9080", str(server.http_port))
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
    server.process.send_signal(signal.SIGSTOP)
    halted = subprocess.run(command, timeout=30, check=False, capture_output=True)
    assert b"timed out" in halted.stderr


def test_a_stop_answers_accepted_requests(
    pod: tuple["subprocess.Popen[bytes]", list[int]],
) -> None:
    """The image's stop signal refuses new connections only."""
    nginx, ports = pod
    with Load(f"http://127.0.0.1:{ports[0]}", clients=4) as load:
        load.more(20)
        nginx.send_signal(signal.SIGQUIT)
        assert nginx.wait(30) == 0
        answered = load.statuses[200]
    assert answered >= 20 and load.labels == {LABEL: load.statuses[200]}
    lost = [status for status in load.statuses if isinstance(status, int) and status != 200]
    assert not lost, load.statuses
