"""How a patch takes the place of a part of MLServer."""

from typing import Any

import mlserver


class PatchDoesNotFit(RuntimeError):
    """The installed MLServer lacks what a patch replaces, though its version is in the range."""

    def __init__(self, owner: Any, name: str) -> None:
        super().__init__(
            f"MLServer {mlserver.__version__} has no {owner.__name__}.{name}, which mlserver_timm "
            f"replaces; install the version that requirements.txt names."
        )


def existing(owner: Any, name: str) -> Any:
    """What is there to be replaced; raises PatchDoesNotFit where nothing is."""
    if not hasattr(owner, name):
        raise PatchDoesNotFit(owner, name)
    return getattr(owner, name)


def replace(owner: Any, name: str, new: Any) -> Any:
    """Sets `owner.name` and returns what was there; raises PatchDoesNotFit where nothing was."""
    original = existing(owner, name)
    setattr(owner, name, new)
    return original
