"""Serve any timm image classifier with MLServer.

`mlserver_timm.TimmClassifier` is the runtime: name it as the `implementation` in
model-settings.json.

MLServer reloads this module each time it loads a model, and the image decoders import it without
MLServer. So it holds no state and imports nothing until a name is asked for (PEP 562).
"""

from typing import Any

__all__ = ["TimmClassifier", "TimmModel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlserver_timm import runtime

    return getattr(runtime, name)
