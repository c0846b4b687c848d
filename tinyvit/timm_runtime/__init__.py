"""A timm image classifier as an MLServer runtime: the package behind serve-model.py."""

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class _Code:
    """A copy of this package on disk, and what its files hold."""

    folder: Path
    digest: str


def _code_in(folder: Path) -> _Code:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".html"):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return _Code(folder, digest.hexdigest())


_LOADED = _code_in(Path(__file__).resolve().parent)
_OTHERS: dict[_Code, dict[str, ModuleType]] = {}
"""Modules of the copies of this package in other folders, which served models still run."""


def use_code_beside(file: str) -> None:
    """Makes `import timm_runtime` mean the package in the folder of `file`, as it is on disk now.

    MLServer puts each model's folder on `sys.path`, but Python imports a name once for all of them:
    two copies of this folder in one repository would share the first one's code, and a model
    reloaded after an edit would keep the old. What runs already keeps the modules it was made from.
    """
    wanted = _code_in(Path(file).resolve().parent / __name__)
    if wanted == _LOADED:
        return
    modules = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name == __name__ or name.startswith(f"{__name__}.")
    }
    if wanted.folder != _LOADED.folder:
        _OTHERS[_LOADED] = modules
    if wanted in _OTHERS:
        sys.modules.update(_OTHERS[wanted])
        return
    importlib.invalidate_caches()
    sys.path.insert(0, str(wanted.folder.parent))
    try:
        importlib.import_module(__name__)._OTHERS = _OTHERS  # type: ignore[attr-defined]
    finally:
        sys.path.remove(str(wanted.folder.parent))
