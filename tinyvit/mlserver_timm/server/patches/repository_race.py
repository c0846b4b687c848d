"""One load or unload of a model after the other."""

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from mlserver.handlers import ModelRepositoryHandlers

from mlserver_timm.server.patches.replacing import existing, replace

FAULT = (
    "Of two loads of one model at once through the repository API, MLServer unloads the old model "
    "twice and one of the new ones never; a first load that fails leaves an empty entry behind."
)
UPSTREAM = "unreported; tests/patches/test_repository_race.py"
AFFECTS = ">=1.7.1,<1.8"

_locks: "WeakValueDictionary[str, asyncio.Lock]" = WeakValueDictionary()
"""Of the models that are being loaded or unloaded now."""


def apply() -> None:
    for name in ("load", "unload"):
        original = existing(ModelRepositoryHandlers, name)
        replace(ModelRepositoryHandlers, name, _in_turn(original))


def is_changing(name: str) -> bool:
    """Whether somebody is loading or unloading a model through the repository API."""
    return name in _locks


def _in_turn(original: Any) -> Callable[..., Any]:
    async def in_turn(self: ModelRepositoryHandlers, name: str) -> bool:
        lock = _locks.setdefault(name, asyncio.Lock())
        async with lock:
            try:
                return await original(self, name)
            finally:
                _forget_if_empty(self._model_registry, name)

    return in_turn


def _forget_if_empty(registry: Any, name: str) -> None:
    if name in registry._models and registry._models[name].empty():
        del registry._models[name]
