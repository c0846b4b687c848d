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
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import CheckpointError, Description, Source, describe, load_network

if TYPE_CHECKING:
    import openvino
    import torch

MODEL, BINARY, DESCRIPTION = "model.xml", "model.bin", "description.json"

logger = logging.getLogger("mlserver.tinyvit")

# Importing openvino reports to Google Analytics, by a process that stays as a zombie, and writes
# to ~/intel. Without this package of its own it does neither.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def convert(source: Source, cache_dir: Path) -> "tuple[openvino.Model, Description]":
    """The network of `source` as OpenVINO's, from the cache where it holds the very same; raises
    CheckpointError. A cache that is damaged is made anew, one that cannot be written done without.
    """
    kept = Converted(cache_dir.expanduser() / _key(source))
    known = kept.read()
    if known:
        return known
    logger.info("Converting %s for OpenVINO; the next start finds it done.", source.name)
    try:
        kept.folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Converted(Path(tempfile.mkdtemp(dir=kept.folder.parent, prefix=".")))
    except OSError as error:
        logger.warning("The converted network cannot be kept for the next start: %s", error)
        return convert_here(source)
    try:
        _convert_elsewhere(source, draft.folder)
        draft.move(kept.folder)
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)
    return kept.read() or convert_here(source)


@dataclass(frozen=True)
class Converted:
    """A folder with one converted network, checked when it is read."""

    folder: Path

    def read(self) -> "tuple[openvino.Model, Description] | None":
        """What was written, or None where nothing was or any file has changed since."""
        import openvino

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
        import openvino

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


def _key(source: Source) -> str:
    """Names everything the converted network is made from: weights, code and libraries."""
    code = b"".join(Path(__file__).with_name(n).read_bytes() for n in _SOURCES)
    libraries = [f"{name}=={version(name)}" for name in ("openvino", "torch", "timm")]
    parts = [source.digest(), hashlib.sha256(code).hexdigest(), *libraries]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


_SOURCES = ("conversion.py", "checkpoint.py")


def convert_here(source: Source) -> "tuple[openvino.Model, Description]":
    """The conversion itself, in this process; raises CheckpointError."""
    description = describe(source)
    network = pixels_to_probabilities(source, description)
    return _trace(network, description.input_size), description


def pixels_to_probabilities(source: Source, description: Description) -> "torch.nn.Module":
    """The checkpoint's network from uint8 `[N,H,W,3]` to float32 probabilities `[N,classes]`, with
    mean and deviation folded in; raises CheckpointError."""
    import torch

    class PixelsToProbabilities(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network
            std = torch.tensor(description.std)
            mean = torch.tensor(description.mean)
            self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
            return self.network(x).float().softmax(-1)

    return PixelsToProbabilities(load_network(source)).eval()


def _trace(network: "torch.nn.Module", input_size: tuple[int, int]) -> "openvino.Model":
    """OpenVINO's frontend directly: openvino.convert_model reports its use to Intel by default."""
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Sizes that tracing makes constant are constant: only the batch varies.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        decoder = TorchScriptPythonDecoder(network, example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape(openvino.PartialShape([-1, *input_size, 3]))
    return model


def _convert_elsewhere(source: Source, target: Path) -> None:
    """Runs this file as a program, which ends with us: it watches its standard input."""
    command = [sys.executable, __file__, str(source.folder), source.name, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout
        sentence = p.stdout.read().strip()
    if p.returncode:
        raise CheckpointError(sentence or f"{source.name} could not be converted; see above.")


def _main(folder: str, name: str, target: str) -> int:
    threading.Thread(target=_end_with_parent, args=[target], daemon=True).start()
    try:
        Converted(Path(target)).write(*convert_here(Source(Path(folder), name)))
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
