"""The manifests fit the schemas of Kubernetes and of each operator's custom resources."""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.kustomize import COMPONENTS, one, rendered
from tests.support.manifests import (
    DEPLOY,
    KUBERNETES,
    KUBERNETES_VERSIONS,
    MODEL,
    PODS,
    RUNTIME,
    SERVER,
    SERVICES,
    documents,
    environment_of,
    server_of,
)

pytestmark = pytest.mark.slow

CUSTOM = yaml.safe_load(Path(__file__).with_name("custom-resources.yaml").read_text())
TYPES = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "count": {"type": "integer", "minimum": 0},
    "object": {"type": "object"},
}


def schema(shape: Any) -> dict[str, Any]:
    """Return the JSON schema of a shape in custom-resources.yaml."""
    if isinstance(shape, list):
        return {"type": "array", "items": schema(shape[0])}
    if isinstance(shape, str):
        return TYPES.get(shape) or {"type": "string", "pattern": f"^({shape})$"}
    return {
        "type": "object",
        "properties": {key.removesuffix("!"): schema(value) for key, value in shape.items()},
        "required": [key.removesuffix("!") for key in shape if key.endswith("!")],
        "additionalProperties": False,
    }


def check(resource: dict[str, Any], version: str) -> None:
    """Raise if a resource does not fit its kind's schema."""
    shape = CUSTOM.get(resource["kind"])
    if not shape:
        kubernetes_validate.validate(resource, version, strict=True)
        return
    metadata = {"name!": "text", "annotations": "object", "labels": "object"}
    common = {"kind!": resource["kind"], "metadata!": metadata}
    jsonschema.validate(resource, schema({**shape, **common}))


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_kubernetes_accepts_the_pods_of_other_kinds(pod: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
    check(whole, KUBERNETES_VERSIONS[0])


@pytest.mark.parametrize(
    "resource", [RUNTIME, *SERVICES, SERVER, MODEL], ids=lambda each: each["metadata"]["name"]
)
def test_kserve_and_seldon_accept(resource: dict[str, Any]) -> None:
    check(resource, KUBERNETES_VERSIONS[0])


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_what_kubectl_renders_fits(version: str) -> None:
    objects = rendered()
    for each in objects:
        check(each, version)
    applied = {each["kind"] for path in KUBERNETES for each in documents(path)}
    assert {each["kind"] for each in objects} == applied | {"ConfigMap"}
    pod = one("Deployment", objects)["spec"]["template"]["spec"]
    configuration = one("ConfigMap", objects)
    (volume,) = [each for each in pod["volumes"] if "configMap" in each]
    assert volume["configMap"]["name"] == configuration["metadata"]["name"]
    assert configuration["data"] == {
        "nginx.conf": (DEPLOY / "nginx.conf").read_text(),
        "replicas.conf": (DEPLOY / "kubernetes" / "replicas.conf").read_text(),
    }
    assert server_of(pod)["image"] == "tinyvit:1.0.0"


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_what_kubectl_renders_with_all_components_fits(version: str, tmp_path: Path) -> None:
    for each in rendered(COMPONENTS, tmp_path):
        check(each, version)


ADDED = {
    "gateway": {"Gateway", "HTTPRoute", "GRPCRoute"},
    "ingress": {"Ingress"},
    "pod-monitor": {"PodMonitor"},
    "prometheus-rule": {"PrometheusRule"},
    "weights-volume": {"PersistentVolumeClaim"},
    "zone-spread": set(),
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_alone_adds_its_own_kinds(name: str, tmp_path: Path) -> None:
    plain, objects = rendered(), rendered([name], tmp_path)
    assert {each["kind"] for each in objects} - {each["kind"] for each in plain} == ADDED[name]
    changed = one("Deployment", plain) != one("Deployment", objects)
    assert changed == (name in {"pod-monitor", "weights-volume", "zone-spread"})


def test_the_weights_volume_is_where_the_model_is_read(tmp_path: Path) -> None:
    objects = rendered(["weights-volume"], tmp_path)
    pod = one("Deployment", objects)["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
    claim = one("PersistentVolumeClaim", objects)["metadata"]["name"]
    assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    (mount,) = server_of(pod)["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert environment_of(pod)["MLSERVER_MODEL_URI"] == mount["mountPath"]


def test_routes_lead_to_ports_of_the_service(tmp_path: Path) -> None:
    objects = rendered(["ingress", "gateway"], tmp_path)
    service = one("Service", objects)
    ports = {each["name"]: each["port"] for each in service["spec"]["ports"]}
    routes = [one(kind, objects)["spec"] for kind in ("HTTPRoute", "GRPCRoute")]
    backends = [each["rules"][0]["backendRefs"] for each in routes]
    name = service["metadata"]["name"]
    assert backends == [[{"name": name, "port": ports[port]}] for port in ("http", "grpc")]
    listeners = {each["name"]: each for each in one("Gateway", objects)["spec"]["listeners"]}
    for route in routes:
        listener = listeners[route["parentRefs"][0]["sectionName"]]
        assert [listener["hostname"]] == route["hostnames"]
        assert listener["tls"]["mode"] == "Terminate"
    for ingress in (each["spec"] for each in objects if each["kind"] == "Ingress"):
        (rule,) = ingress["rules"]
        assert rule["host"] in ingress["tls"][0]["hosts"]
        backend = rule["http"]["paths"][0]["backend"]["service"]
        assert backend["name"] == name and backend["port"]["name"] in ports


def test_the_prometheus_rule_is_the_alerts_file(tmp_path: Path) -> None:
    rule = one("PrometheusRule", rendered(["prometheus-rule"], tmp_path))
    assert rule["spec"] == yaml.safe_load((DEPLOY / "alerts.yml").read_text())
