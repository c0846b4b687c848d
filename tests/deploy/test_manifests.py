"""What the manifests promise: few rights, one way in, no request lost at a stop."""

import re
from typing import Any

import pytest

from manifests import (
    DEPLOY,
    DEPLOYMENT,
    PODS,
    SERVICE,
    document,
    documents,
    environment_of,
)

LONGEST_REQUEST = 30
"""Seconds: `extra.timeout`."""
STOPPING = 15
"""Seconds in which the server ends, whatever it does."""


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_containers_may_do_little(pod: dict[str, Any]) -> None:
    shared = pod.get("securityContext", {})
    volumes = {each["name"]: each for each in pod["volumes"]}
    for container in pod["containers"]:
        security = {**shared, **container["securityContext"]}
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"requests", "limits"} <= container["resources"].keys()
        writable = [each for each in container["volumeMounts"] if not each.get("readOnly")]
        assert all("emptyDir" in volumes[each["name"]] for each in writable)


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_everything_written_goes_to_the_writable_volume(pod: dict[str, Any]) -> None:
    variables = environment_of(pod)
    for name in ("MLSERVER_ENVIRONMENTS_DIR", "MLSERVER_METRICS_DIR", "TINYVIT_CACHE_DIR"):
        assert variables[name].startswith("/cache/")
    known = {"TINYVIT_CACHE_DIR"}
    assert {name for name in variables if name.startswith("TINYVIT_")} == known


def test_no_token_and_no_service_links() -> None:
    for pod in (PODS["kubernetes"], SERVICE["spec"]["predictor"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    assert PODS["seldon"]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_server_is_reached_through_nginx_only(name: str) -> None:
    server, nginx = PODS[name]["containers"]
    variables = environment_of(PODS[name])
    assert variables["MLSERVER_HOST"] == "127.0.0.1"
    assert "ports" not in server
    replicas = (DEPLOY / "kubernetes" / "replicas.conf").read_text()
    for port in ("HTTP", "GRPC", "METRICS"):
        assert f"127.0.0.1:{variables[f'MLSERVER_{port}_PORT']};" in replicas
    listened = set(re.findall(r"listen (\d+)", (DEPLOY / "nginx.conf").read_text() + replicas))
    assert {str(each["containerPort"]) for each in nginx["ports"]} <= listened


@pytest.mark.parametrize(
    "container",
    [PODS["kubernetes"]["containers"][0], PODS["kserve"]["containers"][1]],
    ids=["kubernetes", "kserve"],
)
def test_probes_tell_alive_from_ready(container: dict[str, Any]) -> None:
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    patience = container.get("startupProbe", container["readinessProbe"])
    assert patience["periodSeconds"] * patience["failureThreshold"] >= 120


def test_termination_outlasts_the_longest_request() -> None:
    server, nginx = PODS["kubernetes"]["containers"]
    grace = PODS["kubernetes"]["terminationGracePeriodSeconds"]
    waits = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = nginx["lifecycle"]["preStop"]["exec"]["command"][-1]
    endpoints_go = int(re.match(r"sleep (\d+);", drains)[1])  # type: ignore[index]
    assert waits >= endpoints_go + LONGEST_REQUEST
    assert grace >= waits + STOPPING
    assert SERVICE["spec"]["predictor"]["timeout"] > LONGEST_REQUEST + STOPPING
    assert PODS["seldon"]["terminationGracePeriodSeconds"] > LONGEST_REQUEST + STOPPING


def test_network_policy_lets_nobody_in_unnamed() -> None:
    spec = document(DEPLOY / "kubernetes" / "network-policy.yaml", "NetworkPolicy")["spec"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"] == labels
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["egress"] == []
    ports = {each["name"] for each in PODS["kubernetes"]["containers"][1]["ports"]}
    allowed: dict[str, list[Any]] = {}
    for rule in spec["ingress"]:
        assert rule["from"] and all(peer.values() for peer in rule["from"])
        for port in rule["ports"]:
            allowed.setdefault(port["port"], []).extend(rule["from"])
    assert allowed.keys() == ports
    (prometheus,) = allowed["metrics"]
    assert list(prometheus["namespaceSelector"]["matchLabels"].values()) == ["monitoring"]


def test_scaling_and_budget_are_of_the_deployment() -> None:
    scaler, budget = documents(DEPLOY / "kubernetes" / "scaling.yaml")
    assert scaler["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    (metric,) = scaler["spec"]["metrics"]
    names = [each["name"] for each in PODS["kubernetes"]["containers"]]
    assert metric["containerResource"]["container"] in names
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["maxUnavailable"] < scaler["spec"]["minReplicas"]
