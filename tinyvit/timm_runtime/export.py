"""A checkpoint's network converted for OpenVINO, in a process of its own, and kept.

The serving process then needs neither the gigabyte nor the seconds that importing torch costs.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint, Description, describe
from .engines.openvino_import import import_openvino
from .errors import CheckpointError
from .network import network_of, to_openvino

if TYPE_CHECKING:
    import openvino

MODEL, BINARY, DESCRIPTION = "model.xml", "model.bin", "description.json"

logger = logging.getLogger("mlserver.tinyvit")


def convert(checkpoint: Checkpoint, cache_dir: Path) -> "tuple[openvino.Model, Description]":
    """The network of `checkpoint` as OpenVINO's, from the cache where it holds the very same.

    Raises CheckpointError. A cache that is damaged is made anew, one that cannot be written done
    without.
    """
    kept = ExportedModel(cache_dir.expanduser() / _key(checkpoint))
    known = kept.read()
    if known:
        return known
    logger.info("Converting %s for OpenVINO; the next start finds it done.", checkpoint.name)
    try:
        kept.folder.parent.mkdir(parents=True, exist_ok=True)
        draft = ExportedModel(Path(tempfile.mkdtemp(dir=kept.folder.parent, prefix=".")))
    except OSError as error:
        logger.warning("The converted network cannot be kept for the next start: %s", error)
        return convert_here(checkpoint)
    try:
        _convert_elsewhere(checkpoint, draft.folder)
        draft.move(kept.folder)
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)
    return kept.read() or convert_here(checkpoint)


@dataclass(frozen=True)
class ExportedModel:
    """A folder with one converted network, checked when it is read."""

    folder: Path

    def read(self) -> "tuple[openvino.Model, Description] | None":
        """What was written, or None where nothing was or any file has changed since."""
        openvino = import_openvino()
        try:
            content = json.loads((self.folder / DESCRIPTION).read_text())
            if content.pop("digests") != self._digests():
                raise ValueError("its files have changed")
            content["input_size"] = tuple(content["input_size"])
            return openvino.Core().read_model(self.folder / MODEL), Description(**content)
        except FileNotFoundError:
            return None
        except Exception as error:  # damage takes any form, and a new conversion mends it
            logger.warning("Converting again: the cache %s is damaged (%s).", self.folder, error)
            return None

    def write(self, model: "openvino.Model", description: Description) -> None:
        """Writes the network, and what shows later that nothing has changed."""
        openvino = import_openvino()
        openvino.save_model(model, self.folder / MODEL, compress_to_fp16=False)
        content = asdict(description) | {"digests": self._digests()}
        (self.folder / DESCRIPTION).write_text(json.dumps(content))

    def move(self, folder: Path) -> None:
        """Puts the whole folder in place at once; another process may have been first."""
        try:
            shutil.rmtree(folder, ignore_errors=True)
            self.folder.replace(folder)
        except OSError as error:
            logger.debug("%s is kept as it is: %s", folder, error)

    def _digests(self) -> dict[str, str]:
        return {
            name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            for name in (MODEL, BINARY)
        }


def _key(checkpoint: Checkpoint) -> str:
    """Names everything the converted network is made from: weights, code and libraries."""
    code = b"".join(Path(__file__).with_name(n).read_bytes() for n in _SOURCES)
    libraries = [f"{name}=={version(name)}" for name in ("openvino", "torch", "timm")]
    parts = [checkpoint.digest(), hashlib.sha256(code).hexdigest(), *libraries]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


_SOURCES = ("export.py", "network.py", "checkpoint.py")


def convert_here(checkpoint: Checkpoint) -> "tuple[openvino.Model, Description]":
    """The conversion itself, in this process; raises CheckpointError."""
    description = describe(checkpoint)
    network = network_of(checkpoint, description)
    return to_openvino(network, description.input_size), description


def _convert_elsewhere(checkpoint: Checkpoint, target: Path) -> None:
    """Runs this module as a program, which ends with us: it watches its standard input."""
    arguments = [str(checkpoint.folder.absolute()), checkpoint.name, str(target.absolute())]
    command = [sys.executable, "-m", __name__, *arguments]
    # Python puts the working directory first on sys.path: this package and no other copy of it.
    home = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        assert p.stdout
        sentence = p.stdout.read().strip()
    if p.returncode:
        raise CheckpointError(sentence or f"{checkpoint.name} could not be converted; see above.")


def _main(folder: str, name: str, target: str) -> int:
    threading.Thread(target=_end_with_parent, args=[target], daemon=True).start()
    try:
        ExportedModel(Path(target)).write(*convert_here(Checkpoint(Path(folder), name)))
    except CheckpointError as error:
        print(error)
        return 1
    return 0


def _end_with_parent(target: str) -> None:
    sys.stdin.read()
    shutil.rmtree(target, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
