"""A converted network as a folder: all that serving needs, without torch."""

import hashlib
import json
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
"""Digests of all the others, as `sha256sum -c` reads them."""

AGAIN = "Export the checkpoint again: make export CHECKPOINT=... OUT=..."


@dataclass(frozen=True)
class ExportedModel:
    """A folder with one converted network, checked when it is read."""

    folder: Path

    def exists(self) -> bool:
        """Whether the folder is an exported one, be it complete or not."""
        return any((self.folder / name).exists() for name in (SUMS, MODEL, DESCRIPTION))

    def weights(self) -> str:
        """What the checkpoint is called that was exported; raises CheckpointError."""
        return str(_content(self._bytes(DESCRIPTION)).get("weights", self.folder))

    def read(self) -> "tuple[openvino.Model, Description]":
        """The network and its description; raises CheckpointError where any file is missing, has
        changed, or is nothing that this OpenVINO reads.

        Files are read into memory rather than mapped: written over in place, they would change the
        network that is being served.
        """
        openvino = import_openvino()
        weights = openvino.Tensor(openvino.Type.u8, [self._size(BINARY)])
        files: dict[str, Any] = {name: self._bytes(name) for name in FILES if name != BINARY}
        files[BINARY] = self._fill(weights.data)
        self._check(files)
        content = _content(files[DESCRIPTION])
        try:
            description = Description.model_validate_json(json.dumps(content["description"]))
            model = openvino.Core().read_model(files[MODEL].decode(), weights)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"OpenVINO {version('openvino')} and this code cannot read {self.folder}, which "
                f"OpenVINO {content.get('openvino')} has written ({first_line(error)}). {AGAIN}"
            ) from None
        return model, description

    def write(
        self, model: "openvino.Model", description: Description, weights: str, card: str
    ) -> None:
        """Writes everything, to be read by everybody; raises OSError or RuntimeError."""
        openvino = import_openvino()
        openvino.save_model(model, self.folder / MODEL, compress_to_fp16=False)
        content = {
            "weights": weights,
            "openvino": version("openvino"),
            "description": description.model_dump(),
        }
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
                    f"{self.folder / name} is not what was exported: its digest is not the one in "
                    f"{SUMS}. {AGAIN}"
                )

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from None

    def _size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            raise self._unreadable(name, error) from None

    def _fill(self, array: Any) -> Any:
        """Reads the network's weights into `array`."""
        try:
            with open(self.folder / BINARY, "rb") as file:
                file.readinto(array)
        except OSError as error:
            raise self._unreadable(BINARY, error) from None
        return array

    def _unreadable(self, name: str, error: OSError) -> CheckpointError:
        if isinstance(error, PermissionError):
            return CheckpointError(
                f"This user may not read {self.folder / name}: chmod -R a+rX {self.folder} helps."
            )
        return CheckpointError(f"{self.folder / name} cannot be read ({error.strerror}). {AGAIN}")


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(description: bytes) -> dict[str, Any]:
    try:
        content = json.loads(description)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}
