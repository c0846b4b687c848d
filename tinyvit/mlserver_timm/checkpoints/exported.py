"""A converted network as a folder: all that serving needs, without torch."""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlserver_timm.checkpoints.checkpoint import Description, first_line
from mlserver_timm.checkpoints.openvino_import import import_openvino
from mlserver_timm.errors import CheckpointError

if TYPE_CHECKING:
    import openvino

MODEL, BINARY, DESCRIPTION, CARD = "model.xml", "model.bin", "description.json", "README.md"
FILES = (MODEL, BINARY, DESCRIPTION, CARD)
SUMS = "SHA256SUMS"
"""Digests of all other files, as `sha256sum -c` reads them."""

AGAIN = "Export the checkpoint again: make export CHECKPOINT=... OUT=..."


@dataclass(frozen=True)
class ExportedModel:
    """A folder with one converted network, whose files are checked when they are read."""

    folder: Path

    def exists(self) -> bool:
        """Return whether the folder is an export, even if files are missing."""
        return any(os.path.exists(self.folder / name) for name in (SUMS, MODEL, DESCRIPTION))

    def digest(self) -> str:
        """Return the SHA-256 of SHA256SUMS, and so of all files; raises CheckpointError."""
        return _digest(self._bytes(SUMS))

    def read(self) -> "tuple[openvino.Model, Description]":
        """Return the network and its description.

        Raises CheckpointError if a file is missing, has changed, or cannot be read by this
        OpenVINO. Files are not mapped: overwriting them in place would change the network that is
        being served.
        """
        openvino = import_openvino()
        files: dict[str, Any] = {name: self._bytes(name) for name in FILES if name != BINARY}
        weights = self._weights()
        files[BINARY] = weights.data
        self._check(files)
        content: dict[str, Any] = {}
        try:
            content |= json.loads(files[DESCRIPTION])
            description = Description.model_validate_json(json.dumps(content["description"]))
            model = openvino.Core().read_model(files[MODEL].decode(), weights)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"OpenVINO {version('openvino')} and this code cannot read {self.folder}, which "
                f"OpenVINO {content.get('openvino')} has written ({first_line(error)}). {AGAIN}"
            ) from None
        return model, description

    def write(self, model: "openvino.Model", description: Description, card: str) -> None:
        """Write all files, readable for everyone; raises OSError or RuntimeError."""
        openvino = import_openvino()
        openvino.save_model(model, self.folder / MODEL, compress_to_fp16=False)
        content = {"openvino": version("openvino"), "description": description.model_dump()}
        (self.folder / DESCRIPTION).write_text(json.dumps(content, indent=1))
        (self.folder / CARD).write_text(card)
        sums = [f"{_digest((self.folder / name).read_bytes())}  {name}\n" for name in FILES]
        (self.folder / SUMS).write_text("".join(sums))
        for name in (*FILES, SUMS):
            (self.folder / name).chmod(0o644)
        self.folder.chmod(0o755)

    def _check(self, files: dict[str, Any]) -> None:
        lines = self._bytes(SUMS).decode(errors="replace").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name, content in files.items():
            if sums.get(name) != _digest(content):
                raise CheckpointError(
                    f"{self.folder / name} has changed since the export: its digest is not the one "
                    f"in {SUMS}. {AGAIN}"
                )

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.folder / name, error) from None

    def _weights(self) -> "openvino.Tensor":
        openvino = import_openvino()
        try:
            with open(self.folder / BINARY, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                weights = openvino.Tensor(openvino.Type.u8, [size])
                file.readinto(weights.data)
                return weights
        except OSError as error:
            raise _unreadable(self.folder / BINARY, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, PermissionError):
        return CheckpointError(f"No permission to read {path}: run chmod -R a+rX {path.parent}.")
    return CheckpointError(f"{path} cannot be read ({error.strerror}). {AGAIN}")


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
