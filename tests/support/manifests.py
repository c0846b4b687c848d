"""The manifests under `deploy/`, read."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.support.paths import DEPLOY

KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def document(path: Path, kind: str) -> dict[str, Any]:
    return next(each for each in documents(path) if each["kind"] == kind)


DEPLOYMENT = document(DEPLOY / "kubernetes" / "deployment.yaml", "Deployment")
RUNTIME = document(DEPLOY / "kserve" / "tinyvit.yaml", "ServingRuntime")
SERVICE = document(DEPLOY / "kserve" / "tinyvit.yaml", "InferenceService")
STANDARD_SERVICE = document(DEPLOY / "kserve" / "standard.yaml", "InferenceService")
SERVICES = (SERVICE, STANDARD_SERVICE)
SERVER = document(DEPLOY / "seldon" / "tinyvit.yaml", "Server")
MODEL = document(DEPLOY / "seldon" / "tinyvit.yaml", "Model")

PODS = {
    "kubernetes": DEPLOYMENT["spec"]["template"]["spec"],
    "kserve": {key: RUNTIME["spec"][key] for key in ("containers", "volumes")},
    "seldon": SERVER["spec"]["podSpec"],
}


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all containers, a sidecar first."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def server_of(pod: dict[str, Any]) -> dict[str, Any]:
    return containers_of(pod)[0]


def nginx_of(pod: dict[str, Any]) -> dict[str, Any]:
    return containers_of(pod)[1]


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in server_of(pod)["env"]}
