"""`mlserver build tinyvit` on stand-ins for MLServer's images, and a converter without memory."""

import os
import re
from pathlib import Path

import pytest
import requests
from mlserver import __version__

from client.local import MLSERVER
from tests.support.containers import Container
from tests.support.docker_engine import DOCKER, Engine
from tests.support.paths import ROOT
from tests.support.programs import output_of
from tests.support.traffic import IMAGE, LABEL

CONDA = r"""
RUN printf '#!/bin/sh\n' > /usr/local/bin/conda && chmod +x /usr/local/bin/conda
"""
# MLServer's image as far as its Dockerfile for folders uses it: pip finds no index, but one wheel
# of another version than is installed, which the folder's pins ask for.
MLSERVER_IMAGE = r"""
WORKDIR /opt/mlserver
COPY build-env.sh activate-env.sh hack/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    pip download --no-deps -d /wheels idna==PINNED && pip install idna==3.6
RUN printf '[global]\nno-index = true\nfind-links = /wheels\n' > /etc/pip.conf && \
    useradd -u 1000 mlserver && chown -R 1000:0 /opt/mlserver
ENV MLSERVER_MODELS_DIR=/mnt/models
USER 1000
"""


@pytest.fixture(scope="module")
def converter(engine: Engine, image: str, secrets: list[str], context: Path) -> str:
    """The first stage of deploy/Dockerfile, which has all that converting needs."""
    options = [*secrets, "--build-arg", "CHECKPOINT=own", "--target", "export"]
    engine.build(context, ROOT / "deploy" / "Dockerfile", "converter", *options)
    return "converter"


@pytest.fixture(scope="module")
def built(
    engine: Engine,
    base: str,
    converter: str,
    secrets: list[str],
    public_context: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "conda").write_text(f"FROM {base}\n{CONDA}")
    engine.build(folder, folder / "conda", "continuumio/miniconda3:24.4.0-0")
    (folder / "build-env.sh").write_text(
        "#!/bin/bash\nset -e\npip install -r $1/requirements.txt\n"
    )
    (folder / "activate-env.sh").write_text("")
    (folder / "build-env.sh").chmod(0o755)
    (folder / "mlserver").write_text(
        f"FROM {converter}\n{MLSERVER_IMAGE.replace('PINNED', pinned('idna'))}"
    )
    engine.build(folder, folder / "mlserver", f"seldonio/mlserver:{__version__}-slim", *secrets)
    programs = folder / "bin"
    programs.mkdir()
    # MLServer's command leaves the network to the daemon, which has none of its own here.
    shim = f'#!/bin/sh\nshift\nexec {DOCKER} build --network host "$@"\n'
    (programs / "docker").write_text(shim)
    (programs / "docker").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    command = (MLSERVER, "build", public_context, "-t", "built")
    output_of(*command, env={**engine.environment, "PATH": path}, timeout=None)
    return "built"


def pinned(name: str) -> str:
    pins = (ROOT / "tinyvit" / "requirements.lock").read_text()
    return re.search(rf"^{name}==(\S+)", pins, re.MULTILINE)[1]  # type: ignore[index]


def printed(engine: Engine, image: str, *command: str) -> str:
    return engine("run", "--rm", "--network", "none", image, *command)


def variables(**values: object) -> tuple[str, ...]:
    return tuple(word for name in values for word in ("-e", f"{name}={values[name]}"))


def test_the_tested_versions_are_installed(engine: Engine, built: str) -> None:
    found = printed(engine, built, "python", "-c", "import idna; print(idna.__version__)")
    assert found == pinned("idna") != "3.6"


def test_the_image_contains_neither_cache_nor_metrics(engine: Engine, built: str) -> None:
    names = printed(engine, built, "ls", "-A", "/opt/mlserver").split()
    assert {"serve-model.py", "mlserver_timm", "sample"} <= set(names)
    assert not {".cache", ".metrics"} & set(names)


def test_unreadable_weights_end_the_start_with_the_reason(engine: Engine, built: str) -> None:
    """`COPY` gives files of mode 0600 to root, and the server is not root."""
    options = ["--rm", "--network", "none", *variables(HF_HUB_OFFLINE=1, MLSERVER_MODEL_URI="own")]
    status, log = engine.attempt("run", *options, built, "mlserver", "start", ".")
    assert status != 0
    reason = "No permission to read /opt/mlserver/own/model.safetensors"
    assert reason in log.splitlines()[-1], log[-2000:]


def test_the_image_serves_the_sample_without_the_hub(engine: Engine, built: str) -> None:
    options = variables(HF_HUB_OFFLINE=1, HF_HOME="/tmp/hub", TINYVIT_CACHE_DIR="/tmp/cache")
    with Container(engine, built, options, ("mlserver", "start", ".")) as container:
        container.wait()
        url = f"{container.url}/v2/models/tinyvit/classify"
        assert requests.post(url, data=IMAGE, timeout=30).json()[0]["label"] == LABEL


def test_a_converter_without_memory_says_so(engine: Engine, converter: str) -> None:
    options = ["--rm", "--network", "none", "--memory", "250m", "--memory-swap", "250m"]
    command = ["python", "-m", "mlserver_timm.checkpoints.export", "own", "/tmp/out"]
    status, printed = engine.attempt("run", *options, converter, *command)
    assert status == 1, printed
    assert re.search(r"was killed, .* memory ran out: it needs about \d+ MiB", printed), printed
