"""The image of deploy/Dockerfile: small, confined, and stopped without losing a request."""

import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import requests

from tests.support.client_threads import ClientThreads
from tests.support.clients import until
from tests.support.containers import CONFINED, REVISION, Container
from tests.support.docker_engine import Engine
from tests.support.programs import output_of
from tests.support.traffic import IMAGE, LABEL

LARGEST = 600 * 10**6
"""Bytes of the image."""


@pytest.fixture(scope="module")
def container(engine: Engine, image: str) -> Iterator[Container]:
    """A confined server for all tests of this module; do not break it."""
    with Container(engine, image, CONFINED) as one:
        one.wait()
        yield one


def classify(container: Container, model: str = "tinyvit") -> requests.Response:
    url = f"{container.url}/v2/models/{model}/classify"
    return requests.post(url, data=IMAGE, timeout=30)


def test_it_is_small(engine: Engine, image: str) -> None:
    print(engine("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image))
    assert int(engine("inspect", "--format", "{{.Size}}", image)) < LARGEST


def test_labels_name_version_revision_and_license(engine: Engine, image: str) -> None:
    labels = json.loads(engine("inspect", "--format", "{{json .Config.Labels}}", image))
    assert {name.removeprefix("org.opencontainers.image."): labels[name] for name in labels} == {
        "title": "TinyViT on MLServer",
        "description": "Image classification over the Open Inference Protocol",
        "version": "1.0.0",
        "revision": REVISION,
        "licenses": "Apache-2.0",
    }


def test_the_sbom_lists_each_package_with_its_licence(engine: Engine, image: str) -> None:
    bom = json.loads(engine("run", "--rm", "--network", "none", image, "cat", "sbom.json"))
    licences = {each["name"].lower(): each.get("licenses") for each in bom["components"]}
    installed = engine("run", "--rm", "--network", "none", image, "pip", "list", "--format", "json")
    names = {each["name"].lower() for each in json.loads(installed)}
    assert licences.keys() == names
    assert {name for name, found in licences.items() if not found} == set()


def test_packages_have_no_tests_of_their_own(engine: Engine, image: str) -> None:
    find = ("find", "/usr/local", "-path", "*-packages/*", "-type", "d", "-name", "tests")
    assert engine("run", "--rm", "--network", "none", image, *find) == ""


def test_nothing_of_torch_is_in_it(engine: Engine, image: str) -> None:
    found = engine("run", "--rm", "--network", "none", image, "pip", "list", "--format", "json")
    names = {each["name"].lower() for each in json.loads(found)}
    assert {"mlserver", "openvino"} <= names
    assert not names & {"torch", "torchvision", "timm", "huggingface-hub", "safetensors"}
    assert not any(name.startswith("nvidia") for name in names)


def test_only_what_is_served_is_in_it(engine: Engine, image: str) -> None:
    listed = engine(
        "run", "--rm", "--network", "none", image, "find", "/opt/tinyvit", "-mindepth", "1"
    )
    names = {path.removeprefix("/opt/tinyvit/") for path in listed.splitlines()}
    top = {name.partition("/")[0] for name in names}
    assert top == {
        *("serve-model.py", "model-settings.json", "settings.json", "mlserver_timm"),
        *("network", "environments", "requirements-serve.lock", "sbom.json", "__pycache__"),
    }
    assert not any(".cache" in name or "left-over" in name for name in names)


def test_the_client_names_the_cup(container: Container) -> None:
    """From weights with mode 0600, which `COPY` gives to root."""
    command = (sys.executable, "client/classify.py", "--url", container.url, "imgs/coffee.jpg")
    assert LABEL in output_of(*command, timeout=60)


def test_the_server_is_the_first_process(container: Container) -> None:
    command = container.engine("exec", container.identifier, "cat", "/proc/1/cmdline")
    assert "mlserver\0start\0/opt/tinyvit" in command


@pytest.mark.parametrize("cores", [1, 2])
def test_threads_follow_the_quota(engine: Engine, image: str, cores: int) -> None:
    """Engine and decoders have one thread for each core that the runtime counts."""
    count = "from mlserver_timm.inference.engines.cpu import available_cores as c; print(c())"
    options = ("--rm", "--network", "none", "--cpus", str(cores))
    assert engine("run", *options, image, "python", "-c", count) == str(cores)


def test_the_health_check_succeeds(container: Container) -> None:
    until(lambda: container.inspect("{{.State.Health.Status}}") == "healthy", 60)


def test_it_takes_little_memory(container: Container) -> None:
    assert classify(container).ok
    print(f"{container.memory() / 2**20:.0f} MiB")
    assert container.memory() < 384 * 2**20


def test_a_stop_under_load_loses_no_request(engine: Engine, image: str) -> None:
    """Each request has its own connection: it is answered, or the connection is refused."""
    outcomes: Counter[int | str] = Counter()

    def ask() -> None:
        while not clients.ended.is_set():
            try:
                outcomes[classify(container).status_code] += 1
            except requests.ConnectionError as error:
                if "refused" in str(error):
                    return
                outcomes[repr(error)] += 1

    clients = ClientThreads([ask] * 8)
    with Container(engine, image, CONFINED) as container:
        container.wait()
        with clients:
            until(lambda: outcomes[200] > 50)
            engine("stop", "-t", "30", container.identifier)
        assert container.inspect("{{.State.ExitCode}}") == "0", container.log
    assert set(outcomes) == {200}, outcomes


def test_any_user_of_the_root_group_serves(engine: Engine, image: str) -> None:
    """OpenShift runs images as a user without a passwd entry."""
    options = ("--user", "123456:0", "--read-only", "--cap-drop", "ALL")
    with Container(engine, image, options) as container:
        container.wait()
        assert classify(container).json()[0]["label"] == LABEL


def test_a_variable_names_the_model(engine: Engine, image: str) -> None:
    """As KServe sets it; by default the folder gives the name, as in the other tests."""
    with Container(engine, image, ("-e", "MLSERVER_MODEL_NAME=cats")) as container:
        container.wait()
        assert classify(container, "cats").json()[0]["label"] == LABEL
        assert classify(container).status_code == 404
