"""The manifests: few privileges, one way in, no request lost at a stop."""

import re
from typing import Any

import pytest
from mlserver.settings import Settings

from tests.support.manifests import (
    DEPLOY,
    DEPLOYMENT,
    PODS,
    SERVICE,
    SERVICES,
    STANDARD_SERVICE,
    containers_of,
    document,
    documents,
    environment_of,
    nginx_of,
    server_of,
)

pytestmark = pytest.mark.slow

LONGEST_REQUEST = 30
"""Seconds: `extra.timeout`."""
STOPPING = 15
"""Seconds in which the server ends, whatever it does."""


KSERVE = "serving.kserve.io"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_containers_have_no_privileges(pod: dict[str, Any]) -> None:
    shared = pod.get("securityContext", {})
    volumes = {each["name"]: each for each in pod.get("volumes", [])}
    for container in containers_of(pod):
        security = {**shared, **container["securityContext"]}
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
            assert {"memory", "ephemeral-storage"} <= amounts.keys()
        mounts = container.get("volumeMounts", [])
        writable = [each for each in mounts if not each.get("readOnly")]
        assert all("sizeLimit" in volumes[each["name"]]["emptyDir"] for each in writable)


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_node_of_two_cores_has_room(pod: dict[str, Any]) -> None:
    """About 0.3 cores and 0.4 GiB of such a node are the system's."""
    requests = [each["resources"]["requests"] for each in containers_of(pod)]
    assert sum(cores(each["cpu"]) for each in requests) <= 1.5
    assert sum(mebibytes(each["memory"]) for each in requests) <= 1024
    limits = server_of(pod)["resources"]["limits"]
    assert mebibytes(limits["memory"]) == 1024  # what the runtime's own limits are made for


def cores(quantity: str) -> float:
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_variables_are_the_runtimes_or_the_servers(pod: dict[str, Any]) -> None:
    known = {f"MLSERVER_{name.upper()}" for name in Settings.model_fields}
    known |= {f"MLSERVER_MODEL_{name}" for name in ("NAME", "URI", "MAX_BATCH_SIZE")}
    assert environment_of(pod).keys() <= known


def test_no_token_and_no_service_links() -> None:
    for pod in (PODS["kubernetes"], SERVICE["spec"]["predictor"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    assert PODS["seldon"]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_server_is_reached_through_nginx_only(name: str) -> None:
    pod = PODS[name]
    variables = environment_of(pod)
    assert variables["MLSERVER_HOST"] == "127.0.0.1"
    assert "ports" not in server_of(pod)
    replicas = (DEPLOY / "kubernetes" / "replicas.conf").read_text()
    for port in ("HTTP", "GRPC", "METRICS"):
        assert f"127.0.0.1:{variables[f'MLSERVER_{port}_PORT']};" in replicas
    listened = set(re.findall(r"listen (\d+)", (DEPLOY / "nginx.conf").read_text() + replicas))
    assert {str(each["containerPort"]) for each in nginx_of(pod)["ports"]} <= listened


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_probes_name_ports_of_their_own_container_only(pod: dict[str, Any]) -> None:
    """A kubelet resolves a name within the container whose probe it is."""
    for container in containers_of(pod):
        declared = {each.get("name") for each in container.get("ports", [])}
        probes = [container[name] for name in PROBES if name in container]
        named = {each["httpGet"]["port"] for each in probes if "httpGet" in each}
        assert {port for port in named if isinstance(port, str)} <= declared


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_readiness_goes_through_nginx_and_liveness_is_per_container(name: str) -> None:
    server, nginx = server_of(PODS[name]), nginx_of(PODS[name])
    assert nginx["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert nginx["livenessProbe"]["httpGet"]["path"] == "/alive"
    port = environment_of(PODS[name])["MLSERVER_HTTP_PORT"]
    assert f'("127.0.0.1", {port})' in server["livenessProbe"]["exec"]["command"][-1]
    for container in (server, nginx):
        alive = container["livenessProbe"]
        assert alive["periodSeconds"] * alive["failureThreshold"] <= 30


def test_nginx_starts_once_the_server_is_alive_and_does_not_wait_for_the_model() -> None:
    server = server_of(PODS["kubernetes"])
    assert server["restartPolicy"] == "Always" and "lifecycle" not in server
    assert server["startupProbe"]["exec"] == server["livenessProbe"]["exec"]
    assert "/v2/health/live" in server["startupProbe"]["exec"]["command"][-1]
    assert server["livenessProbe"]["terminationGracePeriodSeconds"] <= 10


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_nginx_has_room_for_the_bodies_that_it_accepts(name: str) -> None:
    replicas = (DEPLOY / "kubernetes" / "replicas.conf").read_text()
    (count,) = re.findall(r"limit_conn requests (\d+)", replicas)
    sizes = re.findall(r"client_max_body_size (\d+)m", (DEPLOY / "nginx.conf").read_text())
    (volume,) = [each["emptyDir"] for each in PODS[name]["volumes"] if "emptyDir" in each]
    limit = nginx_of(PODS[name])["resources"]["limits"]["ephemeral-storage"]
    assert int(count) * max(map(int, sizes)) < mebibytes(volume["sizeLimit"]) < mebibytes(limit)


def test_termination_outlasts_the_longest_request() -> None:
    pod = PODS["kubernetes"]
    endpoints_go = nginx_of(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= endpoints_go + LONGEST_REQUEST + STOPPING
    assert SERVICE["spec"]["predictor"]["timeout"] > LONGEST_REQUEST + STOPPING
    assert PODS["seldon"]["terminationGracePeriodSeconds"] > LONGEST_REQUEST + STOPPING


def test_network_policy_names_every_client() -> None:
    spec = document(DEPLOY / "kubernetes" / "network-policy.yaml", "NetworkPolicy")["spec"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"] == labels
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["egress"] == []
    ports = {each["name"] for each in nginx_of(PODS["kubernetes"])["ports"]}
    allowed: dict[str, list[Any]] = {}
    for rule in spec["ingress"]:
        assert rule["from"] and all(peer.values() for peer in rule["from"])
        for port in rule["ports"]:
            allowed.setdefault(port["port"], []).extend(rule["from"])
    assert allowed.keys() == ports
    (prometheus,) = allowed["metrics"]
    assert list(prometheus["namespaceSelector"]["matchLabels"].values()) == ["monitoring"]


def test_the_autoscaler_alone_sets_the_number_of_replicas() -> None:
    """A number in the Deployment would reset it at each apply."""
    assert "replicas" not in DEPLOYMENT["spec"]


def test_scaling_and_budget_are_of_the_deployment() -> None:
    scaler, budget = documents(DEPLOY / "kubernetes" / "scaling.yaml")
    assert scaler["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    (metric,) = scaler["spec"]["metrics"]
    names = [each["name"] for each in containers_of(PODS["kubernetes"])]
    assert metric["containerResource"]["container"] in names
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["maxUnavailable"] < scaler["spec"]["minReplicas"]
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_kserve_serves_grpc_in_standard_mode_and_one_port_with_knative() -> None:
    modes = [each["metadata"]["annotations"][f"{KSERVE}/deploymentMode"] for each in SERVICES]
    assert modes == ["Knative", "Standard"]
    assert len(nginx_of(PODS["kserve"])["ports"]) == 1
    assert "ports" not in SERVICE["spec"]["predictor"]["model"]
    ports = STANDARD_SERVICE["spec"]["predictor"]["model"]["ports"]
    assert [each["containerPort"] for each in ports] == [8080, 8081]
