"""A checkpoint's network converted for OpenVINO and kept: in the cache, or where it is wanted.

python -m mlserver_timm.checkpoints.export CHECKPOINT OUT

CHECKPOINT is a folder with config.json and model.safetensors, or a model of the Hugging Face Hub
such as timm/tiny_vit_5m_224.dist_in22k, optionally with @revision. OUT becomes a folder that
parameters.uri or MLSERVER_MODEL_URI takes, and that is served without torch, timm and the hub.
"""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlserver_timm.checkpoints.checkpoint import WEIGHTS, Checkpoint, Description, first_line
from mlserver_timm.checkpoints.converter import NOT_WRITTEN, convert_here
from mlserver_timm.checkpoints.exported import FILES, SUMS, ExportedModel
from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.errors import CheckpointError, EngineUnavailable

if TYPE_CHECKING:
    import openvino

CONVERTER = f"{__package__}.converter"
SOURCES = ("exported.py", "converter.py", "network.py", "checkpoint.py")
LIBRARIES = ("openvino", "torch", "timm")

BASE_MEMORY, WEIGHTS_IN_MEMORY = 1050 * 2**20, 6
"""What converting takes: the libraries, and so many times the size of the weights."""

logger = logging.getLogger("mlserver.tinyvit")


class NotWritten(Exception):
    """The exported folder cannot be written; the sentence says why."""


def convert(checkpoint: Checkpoint, cache_dir: Path) -> "tuple[openvino.Model, Description]":
    """The network of `checkpoint` as OpenVINO's, from the cache where it holds the very same.

    Raises CheckpointError. A cache that is damaged is made anew, one that cannot be written done
    without.
    """
    check_installed(checkpoint, LIBRARIES)
    kept = ExportedModel(cache_dir.expanduser() / _key(checkpoint))
    if kept.exists():
        try:
            return kept.read()
        except CheckpointError as error:
            logger.warning("Converting %s again: %s", checkpoint.name, error)
    else:
        logger.info("Converting %s for OpenVINO; the next start finds it done.", checkpoint.name)
    try:
        _keep(checkpoint, kept.folder)
        return kept.read()
    except (OSError, NotWritten) as error:
        logger.warning("The converted network cannot be kept for the next start: %s", error)
        return convert_here(checkpoint)


def export(checkpoint: Checkpoint, out: Path) -> None:
    """Writes the exported folder `out`, which must be new, empty, or an older export.

    Raises CheckpointError, or NotWritten.
    """
    if checkpoint.exported:
        raise CheckpointError(f"{checkpoint.folder} is exported already; copy it instead.")
    check_installed(checkpoint, LIBRARIES)
    if out.exists() and not (out.is_dir() and _may_be_replaced(out)):
        raise NotWritten(f"{out} is there already and is no exported model; name a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".draft-") as draft:
            _convert_elsewhere(checkpoint, Path(draft))
            (out / SUMS).unlink(missing_ok=True)  # no mixture of two exports is ever served
            for name in (*FILES, SUMS):
                (Path(draft) / name).replace(out / name)
        out.chmod(0o755)
    except (OSError, NotWritten) as error:
        raise NotWritten(f"{out} cannot be written: {first_line(error)}.") from None


def _may_be_replaced(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {*FILES, SUMS}


def _keep(checkpoint: Checkpoint, folder: Path) -> None:
    """Puts the whole folder in place at once; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        _convert_elsewhere(checkpoint, draft)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.replace(folder)
        except OSError:
            if not folder.exists():  # else another process was first with the same
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _key(checkpoint: Checkpoint) -> str:
    """Names everything the converted network is made from: weights, code and libraries."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    libraries = [f"{name}=={version(name)}" for name in LIBRARIES]
    parts = [checkpoint.digest(), hashlib.sha256(code).hexdigest(), *libraries]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def check_installed(checkpoint: Checkpoint, libraries: Collection[str]) -> None:
    """Raises EngineUnavailable where a checkpoint cannot be read for want of a library."""
    missing = [name for name in libraries if not find_spec(name)]
    if missing:
        raise EngineUnavailable(
            f"{checkpoint.name} is a checkpoint, and reading it needs {' and '.join(missing)}, "
            f"which requirements-serve.txt leaves out. Install requirements.txt, or set "
            f"parameters.uri to a folder that was exported."
        )


def _convert_elsewhere(checkpoint: Checkpoint, out: Path) -> None:
    """Runs the converter, which ends with us: it watches its standard input."""
    arguments = [str(checkpoint.folder.absolute()), checkpoint.name, str(out.absolute())]
    command = [sys.executable, "-m", CONVERTER, *arguments]
    # `python -m` puts the working directory first on sys.path: it must find this very package.
    home = Path(__file__).resolve().parents[2]
    # Threads that wait for each other cost torch half of its time, and most where cores are busy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as p:
        assert p.stdout
        sentence = p.stdout.read().strip()
    if p.returncode == NOT_WRITTEN:
        raise NotWritten(sentence)
    if p.returncode == -signal.SIGKILL:
        raise CheckpointError(_killed(checkpoint))
    if p.returncode:
        raise CheckpointError(sentence or f"{checkpoint.name} could not be converted; see above.")


def _killed(checkpoint: Checkpoint) -> str:
    weights = (checkpoint.folder / WEIGHTS).stat().st_size
    needed = BASE_MEMORY + WEIGHTS_IN_MEMORY * weights
    return (
        f"Converting {checkpoint.name} was killed, most likely for want of memory: it needs some "
        f"{needed >> 20} MiB for a moment. Give it as much, or export the checkpoint where there "
        f"is more and serve the exported folder."
    )


def main(arguments: list[str]) -> int:
    """The program; returns its exit code."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, out = arguments
    try:
        export(find_checkpoint(None, name, None, Path.cwd()), Path(out))
    except (CheckpointError, EngineUnavailable, NotWritten) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name} is exported to {out}. Serve it: MLSERVER_MODEL_URI={Path(out).resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
