"""The manifests fit the schemas of Kubernetes, KServe and Seldon."""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.support.kustomize import one, rendered
from tests.support.manifests import (
    DEPLOY,
    KUBERNETES,
    KUBERNETES_VERSIONS,
    MODEL,
    PODS,
    RUNTIME,
    SERVER,
    SERVICE,
    documents,
    server_of,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts(path: Path, version: str) -> None:
    for each in documents(path):
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_kubernetes_accepts_the_pods_of_other_kinds(pod: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
    kubernetes_validate.validate(whole, KUBERNETES_VERSIONS[0], strict=True)


def only(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """The schema of an object with these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def resource(group: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    texts = {"type": "object", "additionalProperties": TEXT}
    metadata = only(("name",), name=TEXT, annotations=texts, labels=texts)
    names = {"apiVersion": {"const": group}, "kind": {"const": kind}}
    return only(("apiVersion", "kind", "metadata", "spec"), **names, metadata=metadata, spec=spec)


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT}
POD = {"type": "object"}  # checked as a Pod's, above
PODS_LIST = {"type": "array", "items": POD}
PROTOCOL = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}
FORMAT = only(("name",), name=TEXT, version=TEXT)

# The fields used, as the custom resource definitions of KServe 0.15 and Seldon Core 2.9 have them.
CUSTOM = {
    "ServingRuntime": resource(
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
        only(
            ("containers",),
            annotations={"type": "object", "additionalProperties": TEXT},
            supportedModelFormats={
                "type": "array",
                "items": only(("name",), name=TEXT, version=TEXT, autoSelect=FLAG, priority=COUNT),
            },
            protocolVersions={"type": "array", "items": PROTOCOL},
            containers=PODS_LIST,
            volumes=PODS_LIST,
        ),
    ),
    "InferenceService": resource(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        only(
            ("predictor",),
            predictor=only(
                ("model",),
                minReplicas=COUNT,
                maxReplicas=COUNT,
                scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
                scaleTarget=COUNT,
                containerConcurrency=COUNT,
                timeout=COUNT,
                canaryTrafficPercent={"type": "integer", "minimum": 0, "maximum": 100},
                automountServiceAccountToken=FLAG,
                enableServiceLinks=FLAG,
                model=only(
                    ("modelFormat",),
                    modelFormat=FORMAT,
                    runtime=TEXT,
                    protocolVersion=PROTOCOL,
                    storageUri={"type": "string", "pattern": "^(s3|gs|pvc|https?)://.+"},
                ),
            ),
        ),
    ),
    "Server": resource(
        "mlops.seldon.io/v1alpha1",
        "Server",
        only(
            ("serverConfig",),
            serverConfig=TEXT,
            capabilities=TEXTS,
            replicas=COUNT,
            podSpec=POD,
        ),
    ),
    "Model": resource(
        "mlops.seldon.io/v1alpha1",
        "Model",
        only(
            ("storageUri",),
            storageUri=TEXT,
            requirements=TEXTS,
            memory={"type": "string", "pattern": "^[0-9]+[KMGT]i?$"},
            replicas=COUNT,
        ),
    ),
}


@pytest.mark.parametrize("each", [RUNTIME, SERVICE, SERVER, MODEL], ids=lambda each: each["kind"])
def test_kserve_and_seldon_accept(each: dict[str, Any]) -> None:
    jsonschema.validate(each, CUSTOM[each["kind"]])


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_what_kubectl_renders_fits(version: str) -> None:
    objects = rendered()
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)
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
