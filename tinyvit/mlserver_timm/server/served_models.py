"""Which of MLServer's models are this runtime's, by name and version."""

import re
from collections.abc import Iterator
from typing import Any

from mlserver import MLModel
from mlserver.registry import MultiModelRegistry, SingleModelRegistry
from starlette.types import Scope

from mlserver_timm.runtime import TimmModel

PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?(/.*)?")


def is_timm_model(model: Any) -> bool:
    """Return whether a model belongs to this runtime, also if it runs in worker processes."""
    return isinstance(getattr(model, "_model", model), TimmModel)


class ServedModels:
    """A view on MLServer's own registry, which alone says what is served."""

    def __init__(self, registry: MultiModelRegistry) -> None:
        self._registry = registry

    def find(self, name: str, version: str | None = None) -> MLModel | None:
        """The model that MLServer answers with; None where there is none or it is not ours."""
        versions = self._registry._models.get(name)
        model = versions._find_model(version) if versions else None
        return model if is_timm_model(model) else None

    def is_unknown_model(self, name: str, version: str | None = None) -> bool:
        """Whether MLServer has no model of this name, or none but ours, and of these not this
        version."""
        versions = self._registry._models.get(name)
        if not versions:
            return True
        return not versions._find_model(version) and all(map(is_timm_model, _all(versions)))

    def model_for_request(self, scope: Scope) -> MLModel | None:
        """The model that an HTTP request is for; None where it is not for one of ours."""
        match = PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        return self.find(match["name"], match["version"]) if match else None

    def __iter__(self) -> Iterator[MLModel]:
        """Every model and version of ours, by name."""
        for _, versions in sorted(self._registry._models.items()):
            yield from filter(is_timm_model, _all(versions))


def _all(versions: SingleModelRegistry) -> list[MLModel]:
    models = list(versions._versions.values())
    if versions.default and not versions.default.version:
        models.append(versions.default)
    return models
