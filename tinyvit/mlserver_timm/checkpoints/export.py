"""Convert checkpoints for OpenVINO, and keep the networks in the cache or in a folder.

python -m mlserver_timm.checkpoints.export CHECKPOINT OUT

CHECKPOINT is a folder with config.json and model.safetensors, or a model of the Hugging Face Hub
such as timm/tiny_vit_5m_224.dist_in22k, optionally with @revision. OUT is a new folder for
parameters.uri or MLSERVER_MODEL_URI; serving it needs neither torch nor timm nor the hub.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlserver_timm.checkpoints.checkpoint import WEIGHTS, Checkpoint, Description
from mlserver_timm.checkpoints.converter import NOT_WRITTEN, convert_here
from mlserver_timm.checkpoints.exported import BINARY, FILES, SUMS, ExportedModel
from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.errors import CheckpointError, EngineUnavailable

if TYPE_CHECKING:
    import openvino

CONVERTER = f"{__package__}.converter"
SOURCES = ("exported.py", "converter.py", "network.py", "checkpoint.py")
LIBRARIES = ("openvino", "torch", "timm")

BASE_MEMORY, WEIGHTS_IN_MEMORY = 1050 * 2**20, 6
"""Memory of a conversion: bytes for the libraries, and a multiple of the weights' size."""

GRAPH_BYTES = 8 * 2**20
"""Maximum size of an exported folder beyond its weights."""

DRAFT = ".draft-"
DRAFT_AGE = 24 * 3600.0
"""Seconds after which no conversion is still at work on a draft."""

logger = logging.getLogger("mlserver.tinyvit")


class NotWritten(Exception):
    """The exported folder cannot be written; the message says why."""


def convert(checkpoint: Checkpoint, cache_dir: Path) -> "tuple[openvino.Model, Description]":
    """Return the network of a checkpoint for OpenVINO, from the cache if it has the same one.

    A cache entry that cannot be read is converted again; a cache that cannot be written is not
    used. Raises CheckpointError.
    """
    check_installed(checkpoint, LIBRARIES)
    kept = ExportedModel(cache_dir / _key(checkpoint))
    if os.path.lexists(kept.folder):
        try:
            return kept.read()
        except CheckpointError as error:
            logger.warning("Converting %s again: %s", checkpoint.name, error)
            shutil.rmtree(kept.folder, ignore_errors=True)
    else:
        logger.info("Converting %s for OpenVINO, once: the cache keeps it.", checkpoint.name)
    try:
        with _draft(checkpoint, cache_dir) as draft:
            converted = ExportedModel(draft).read()
            if _key(checkpoint) == kept.folder.name:  # else the files changed meanwhile
                _keep(draft, kept.folder)
        return converted
    except (OSError, NotWritten) as error:
        logger.warning("The converted network cannot be kept for the next start: %s.", _why(error))
        return convert_here(checkpoint)


def _keep(draft: Path, folder: Path) -> None:
    """Move a finished folder into the cache; another process may be first with the same."""
    try:
        draft.replace(folder)
    except OSError as error:
        if not os.path.lexists(folder):
            logger.warning("The converted network cannot be kept: %s.", _why(error))


@contextlib.contextmanager
def _draft(checkpoint: Checkpoint, parent: Path) -> Iterator[Path]:
    """Yield the exported model in a temporary folder, which is made in `parent`.

    Raises OSError, NotWritten or CheckpointError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{DRAFT}*"):  # of servers that were killed with their converter
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > DRAFT_AGE:
                shutil.rmtree(old)
    with TemporaryDirectory(dir=parent, prefix=DRAFT) as folder:
        _convert_elsewhere(checkpoint, Path(folder))
        yield Path(folder)


def export(checkpoint: Checkpoint, out: Path) -> None:
    """Write the exported folder `out`, which must be new, empty, or an older export.

    Raises CheckpointError or NotWritten.
    """
    if checkpoint.exported:
        raise CheckpointError(f"{checkpoint.folder} is already exported: copy it instead.")
    check_installed(checkpoint, LIBRARIES)
    try:
        if os.path.lexists(out) and not _is_export(out):
            raise NotWritten("it exists and is not an exported model; name a new folder")
        with _draft(checkpoint, out) as draft:
            (out / SUMS).unlink(missing_ok=True)  # a mixture of two exports is then refused
            for name in (*FILES, SUMS):
                (draft / name).replace(out / name)
        with contextlib.suppress(PermissionError):  # a mounted volume may have another owner
            out.chmod(0o755)
    except (OSError, NotWritten) as error:
        raise NotWritten(f"{out} cannot be written: {_why(error)}.") from None


def _is_export(out: Path) -> bool:
    """Return whether a folder has only the files of an export, or drafts of one that was killed."""
    names = {name for name in os.listdir(out) if not name.startswith(DRAFT)}
    return names <= {*FILES, SUMS}


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")


def _key(checkpoint: Checkpoint) -> str:
    """Return a name for all that a converted network depends on: weights, code and libraries."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    libraries = [f"{name}=={version(name)}" for name in LIBRARIES]
    parts = [checkpoint.digest(), hashlib.sha256(code).hexdigest(), *libraries]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def check_installed(checkpoint: Checkpoint, libraries: Collection[str]) -> None:
    """Raise EngineUnavailable if a library that reads checkpoints is not installed."""
    missing = [name for name in libraries if not find_spec(name)]
    if missing:
        raise EngineUnavailable(
            f"{checkpoint.name} is a checkpoint, and reading it needs {' and '.join(missing)}, "
            f"which is not in requirements-serve.txt. Install requirements.txt or "
            f"mlserver-timm[checkpoints], or set parameters.uri to an exported folder."
        )


def _convert_elsewhere(checkpoint: Checkpoint, out: Path) -> None:
    """Write the exported model to the existing folder `out`, by another process.

    Raises OSError, also if the disk has no space for the result, NotWritten or CheckpointError.
    """
    size = (checkpoint.folder / WEIGHTS).stat().st_size
    if hasattr(os, "posix_fallocate"):  # else a full disk would be noticed after the conversion
        with open(out / BINARY, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + GRAPH_BYTES)
    status, sentence = _run_converter(checkpoint, out)
    if status == NOT_WRITTEN:
        raise NotWritten(sentence)
    if status == -signal.SIGKILL:
        raise CheckpointError(
            f"The conversion of {checkpoint.name} was killed, probably because memory ran out: it "
            f"needs about {(BASE_MEMORY + WEIGHTS_IN_MEMORY * size) >> 20} MiB. Raise the limit, "
            f"or export the checkpoint on another machine and serve the exported folder."
        )
    if status:
        raise CheckpointError(sentence or f"{checkpoint.name} cannot be converted; see above.")


def _run_converter(checkpoint: Checkpoint, out: Path) -> tuple[int, str]:
    """Return the converter's exit code and message; it ends with this process, because it watches
    its standard input."""
    arguments = [str(checkpoint.folder.absolute()), checkpoint.name, str(out.absolute())]
    with subprocess.Popen(
        [sys.executable, "-m", CONVERTER, *arguments],
        # `python -m` puts the working directory first on sys.path: it must find this package.
        cwd=Path(__file__).resolve().parents[2],
        # With more threads, which wait for each other, torch takes twice the time.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the server alone
        text=True,
        errors="backslashreplace",
    ) as process:
        assert process.stdout
        sentence = process.stdout.read().strip()
    return process.returncode, sentence


def main(arguments: list[str]) -> int:
    """Run the program; return its exit code."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, out = arguments[0], Path(arguments[1]).expanduser()
    try:
        export(find_checkpoint(None, name, None, Path.cwd()), out)
    except (CheckpointError, EngineUnavailable, NotWritten) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name} is exported to {out}. Serve it: MLSERVER_MODEL_URI={out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
