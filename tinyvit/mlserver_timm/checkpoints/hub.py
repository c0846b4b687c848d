"""Which checkpoint is served: a local folder, the hub's or its cache's, or the fallback."""

import logging
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

HUB_PATIENCE = 10.0
"""Seconds until the hub counts as out of reach; timm's own retries took 57."""

logger = logging.getLogger("mlserver.tinyvit")


def find_checkpoint(
    uri: str | None, pretrained_model: str, fallback: str | None, base: Path
) -> Checkpoint:
    """The checkpoint to serve: `uri`, else `pretrained_model`, which is a folder or a name on the
    hub or in its cache, else `fallback`.

    Relative paths are taken from `base`. Raises CheckpointError; a checkpoint that is there but
    broken, or a name the hub does not know, is an error and never a reason to fall back.
    """
    if uri:
        return _local(_local_folder(uri, base))
    if is_path(pretrained_model, base):
        return _local(_local_folder(pretrained_model, base))
    snapshot = _from_hub(pretrained_model)
    if snapshot:
        return Checkpoint(snapshot, pretrained_model)
    if not fallback:
        raise CheckpointError(
            f"The Hugging Face Hub cannot be reached and {pretrained_model} is not in its cache. "
            f"Set parameters.uri to a local checkpoint folder, or extra.fallback to one to serve "
            f"meanwhile."
        )
    notice = (
        f"The weights '{fallback}' answer in the place of {pretrained_model}: the Hugging Face Hub "
        f"is out of reach, and they are not in its cache."
    )
    logger.warning("SERVING THE FALLBACK. %s", notice)
    return Checkpoint(_local_folder(fallback, base), fallback, fallback=True, notice=notice)


def _local(folder: Path) -> Checkpoint:
    exported = ExportedModel(folder)
    if exported.exists() and not (folder / CONFIG).exists():
        return Checkpoint(folder, exported.weights(), exported=True)
    return Checkpoint(folder, str(folder))


def _local_folder(uri: str, base: Path) -> Path:
    path = Path(absolute(uri, base))
    if not path.is_absolute():
        raise CheckpointError(f"'{uri}' is not a local folder; parameters.uri takes a path.")
    folder = path.resolve()
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}, which the settings name.")
    return folder


def _from_hub(repository: str) -> Path | None:
    """The checkpoint's folder in the hub's cache, refreshed; None where it cannot be had."""
    if not find_spec("huggingface_hub"):
        raise EngineUnavailable(
            f"{repository} is a name on the Hugging Face Hub, and huggingface_hub, which "
            f"requirements-serve.txt leaves out, is not installed. Set parameters.uri or "
            f"MLSERVER_MODEL_URI to a folder that was exported, or install requirements.txt."
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo_id, _, revision = repository.partition("@")
    wanted: dict[str, Any] = {"repo_id": repo_id, "revision": revision or None}
    try:
        online = _answers(lambda: HfApi().model_info(**wanted, timeout=HUB_PATIENCE))
        return Path(
            snapshot_download(
                **wanted, allow_patterns=[CONFIG, WEIGHTS], local_files_only=not online
            )
        )
    except LocalEntryNotFoundError:
        return None
    except (HFValidationError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"The Hugging Face Hub has no model '{repository}' for us ({first_line(error)}). Name "
            f"one such as timm/tiny_vit_5m_224.dist_in22k, or set HF_TOKEN if it is not public."
        ) from None


def _answers(ask: Callable[[], object]) -> bool:
    """Whether the hub answers `ask` within HUB_PATIENCE seconds in all, name look-up included.

    A refusal (4xx) is an answer, and is raised; whatever else goes wrong means out of reach.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    answer: Future[object] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a daemon: it must not delay the exit
    try:
        answer.result(HUB_PATIENCE)
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        return False
    except Exception as error:
        logger.debug("The hub cannot be reached: %r", error)
        return False
    return True
