"""`make demo` serves, names the image and leaves nothing running."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients import until
from tests.support.paths import ROOT
from tests.support.processes import children_of
from tests.support.programs import output_of


def test_demo_serves_names_and_stops(environment) -> None:
    variables = {**os.environ, **environment}
    output = output_of(
        sys.executable, "client/demo.py", "imgs/coffee.jpg", env=variables, timeout=180
    )
    assert "espresso" in output
    port = int(re.search(r"127\.0\.0\.1:(\d+)", output)[1])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_leaves_nothing_running(environment, sig) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "client/demo.py"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "Starting" in process.stdout.readline()
    children = until(lambda: children_of(process.pid), 60)
    process.send_signal(sig)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
