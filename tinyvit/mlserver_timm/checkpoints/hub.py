"""Find the checkpoint to serve: a local folder, the hub's, its cache's, or the fallback."""

import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlserver_timm.checkpoints.checkpoint import CONFIG, WEIGHTS, Checkpoint, first_line
from mlserver_timm.checkpoints.exported import ExportedModel
from mlserver_timm.errors import CheckpointError, EngineUnavailable
from mlserver_timm.settings import absolute, is_path

HUB_TIMEOUT = 10.0
"""Seconds until the hub counts as unreachable; timm's own retries take 57."""

BUSY = (408, 429)
"""Statuses of a hub that may answer the same request later."""

logger = logging.getLogger("mlserver.tinyvit")


def find_checkpoint(
    uri: str | None, pretrained_model: str, fallback: str | None, base: Path
) -> Checkpoint:
    """Return the checkpoint at `uri`, else `pretrained_model`, a folder or a hub id, else
    `fallback`.

    Relative paths are taken from `base`. Raises EngineUnavailable if a hub id needs
    huggingface_hub and it is not installed, and CheckpointError for a broken checkpoint and an
    unknown hub id. Only an unreachable hub is a reason to fall back.
    """
    if uri or is_path(pretrained_model, base):
        folder = _local_folder(uri or pretrained_model, base)
        exported = ExportedModel(folder).exists() and not os.path.exists(folder / CONFIG)
        return Checkpoint(folder, str(folder), exported=exported)
    snapshot = _from_hub(pretrained_model)
    if snapshot:
        return Checkpoint(snapshot, pretrained_model)
    if not fallback:
        raise CheckpointError(
            f"The Hugging Face Hub is unreachable and {pretrained_model} is not in its cache. Name "
            f"a local checkpoint folder instead (parameters.uri), or set extra.fallback to a "
            f"folder to serve meanwhile."
        )
    notice = (
        f"The weights '{fallback}' are served in place of {pretrained_model}: the Hugging Face Hub "
        f"is unreachable, and {pretrained_model} is not in its cache."
    )
    logger.warning("SERVING THE FALLBACK. %s", notice)
    return Checkpoint(_local_folder(fallback, base), fallback, fallback=True, notice=notice)


def _local_folder(uri: str, base: Path) -> Path:
    path = Path(absolute(uri, base))
    if not path.is_absolute():
        raise CheckpointError(f"'{uri}' is not a local folder: parameters.uri takes a path.")
    folder = Path(os.path.realpath(path))
    if not os.path.isdir(folder):  # Path.is_dir raises if a folder above may not be read
        raise CheckpointError(
            f"The checkpoint folder {folder} in the settings does not exist, or may not be read."
        )
    return folder


def _from_hub(repository: str) -> Path | None:
    """Return the folder in the hub's cache, updated if the hub is reachable.

    Returns None if the hub is unreachable and the cache does not have the model. Raises
    CheckpointError if the hub refuses the model, and EngineUnavailable without huggingface_hub.
    """
    if not find_spec("huggingface_hub"):
        raise EngineUnavailable(
            f"{repository} is on the Hugging Face Hub, and huggingface_hub is not installed: it is "
            f"not in requirements-serve.txt. Set parameters.uri or MLSERVER_MODEL_URI to an "
            f"exported folder, or install requirements.txt."
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo_id, _, revision = repository.partition("@")
    model: dict[str, Any] = {"repo_id": repo_id, "revision": revision or None}
    download = functools.partial(snapshot_download, allow_patterns=[CONFIG, WEIGHTS])
    try:
        if _answers(lambda: HfApi().model_info(**model, timeout=HUB_TIMEOUT)):
            return Path(download(**model))
    except LocalEntryNotFoundError as error:
        logger.debug("The hub's files cannot be reached: %r", error)
    except (HFValidationError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"The Hugging Face Hub refuses the model '{repository}' ({first_line(error)}). Name "
            f"one such as timm/tiny_vit_5m_224.dist_in22k, or set HF_TOKEN if it is not public."
        ) from None
    except Exception as error:
        logger.warning("The download of %s broke off: %s", repository, first_line(error))
    try:
        folder = Path(download(**model, local_files_only=True))
    except (LocalEntryNotFoundError, RuntimeError):  # a user without a home has no cache
        return None
    return folder if all((folder / name).exists() for name in (CONFIG, WEIGHTS)) else None


def _answers(ask: Callable[[], object]) -> bool:
    """Return whether the hub answers within HUB_TIMEOUT seconds, DNS included.

    A refusal (4xx, but for those of a busy hub) is raised; any other error means that the hub is
    unreachable.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    answer: Future[object] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a daemon does not delay the exit
    try:
        answer.result(HUB_TIMEOUT)
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        status = 500 if error.response is None else error.response.status_code
        if status < 500 and status not in BUSY:
            raise
        return False
    except Exception as error:
        logger.debug("The hub cannot be reached: %r", error)
        return False
    return True
