"""Weights, labels and preprocessing of a timm checkpoint: where they are, and what they say."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mlserver.errors import MLServerError

if TYPE_CHECKING:  # torch takes seconds to import, and a converted model does without it
    from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_PATIENCE = 10.0
"""Seconds until the hub counts as out of reach; timm's own retries took 57."""

logger = logging.getLogger("mlserver.tinyvit")


class CheckpointError(MLServerError):
    """A checkpoint is missing, incomplete or damaged."""


@dataclass(frozen=True)
class Source:
    """A checkpoint folder in timm's format, and how it is called in front of people."""

    folder: Path
    name: str
    fallback: bool = False

    def __post_init__(self) -> None:
        for name in (CONFIG, WEIGHTS):
            if not (self.folder / name).is_file():
                raise CheckpointError(
                    f"The checkpoint folder {self.folder} has no {name}. A checkpoint is a folder "
                    f"with {CONFIG} and {WEIGHTS}, as timm.models.save_for_hf writes it."
                )

    def digest(self) -> str:
        """SHA-256 over the configuration and the weights, in hexadecimal."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            with open(self.folder / name, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Description:
    """What has to be known of a checkpoint besides its weights."""

    architecture: str
    labels: list[str]
    """One a class, best described name first."""
    input_size: tuple[int, int]
    """Height and width, pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    crop_mode: str


def find_source(uri: str | None, pretrained_model: str, fallback: str | None, base: Path) -> Source:
    """The checkpoint to serve: `uri`, else the hub or its cache, else `fallback`.

    Relative paths are taken from `base`. Raises CheckpointError; a checkpoint that is there but
    broken, or a name the hub does not know, is an error and never a reason to fall back.
    """
    if uri:
        folder = _local_folder(uri, base)
        return Source(folder, str(folder))
    snapshot = _from_hub(pretrained_model)
    if snapshot:
        return Source(snapshot, pretrained_model)
    if not fallback:
        raise CheckpointError(
            f"The Hugging Face Hub cannot be reached and {pretrained_model} is not in its cache. "
            f"Set parameters.uri to a local checkpoint folder, or extra.fallback to one to serve "
            f"meanwhile."
        )
    source = Source(_local_folder(fallback, base), fallback, fallback=True)
    logger.warning(
        "SERVING THE FALLBACK: the Hugging Face Hub cannot be reached and %s is not in its cache, "
        "so the weights are %s. Answers differ from the model that was asked for.",
        pretrained_model,
        source.folder,
    )
    return source


def _local_folder(uri: str, base: Path) -> Path:
    parts = urlparse(uri)
    if parts.scheme not in ("", "file"):
        raise CheckpointError(f"'{uri}' is not a local folder; parameters.uri takes a path.")
    folder = (base / unquote(parts.path) if parts.scheme else base / uri).resolve()
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}, which the settings name.")
    return folder


def _from_hub(repository: str) -> Path | None:
    """The checkpoint's folder in the hub's cache, refreshed; None where it cannot be had."""
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
            f"The Hugging Face Hub has no model '{repository}' for us ({_first_line(error)}). Name "
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


def describe(source: Source) -> Description:
    """Labels and preprocessing of the checkpoint, as timm reads them; raises CheckpointError."""
    from timm.data import resolve_data_config

    config, architecture = _config(source)
    data = resolve_data_config(pretrained_cfg=config)
    channels, height, width = data["input_size"]
    if channels != 3:
        raise CheckpointError(
            f"{source.name} takes {channels} channels; only RGB checkpoints can be served."
        )
    return Description(
        architecture=architecture,
        labels=_labels(config, source),
        input_size=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
    )


def _config(source: Source) -> tuple[dict[str, Any], str]:
    from timm.models import is_model
    from timm.models._hub import load_model_config_from_path

    try:
        config, architecture, _ = load_model_config_from_path(source.folder)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source.folder / CONFIG} is not a timm model configuration: {_first_line(error)}."
        ) from None
    if not is_model(architecture):
        raise CheckpointError(
            f"{source.folder / CONFIG} names the architecture '{architecture}', which this timm "
            f"does not have."
        )
    return config, architecture


def _labels(config: dict[str, Any], source: Source) -> list[str]:
    """The checkpoint's own names, else ImageNet's for its number of classes, else the index.

    That timm's order for 21841 classes is the one TinyViT was trained with was checked against
    the authors' 1k-to-22k index file.
    """
    from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset

    classes = config["num_classes"]
    names = config.get("label_names")
    if names:
        try:
            info = CustomDatasetInfo(names, config.get("label_descriptions"))
            labels = {i: info.index_to_description(i) for i in info.label_indices()}
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The labels of {source.name} are not usable: {error}") from None
        if any(i >= classes for i in labels) or len(labels) != classes:
            raise CheckpointError(
                f"{source.name} has {classes} classes but names {len(labels)} labels."
            )
        return [labels[i] for i in range(classes)]
    subset = infer_imagenet_subset(config)
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [str(i) for i in range(classes)]


def load_network(source: Source) -> "nn.Module":
    """The torch module with the checkpoint's weights, in evaluation mode, on the CPU, float32."""
    import torch
    from safetensors import SafetensorError
    from timm import create_model

    try:
        network = create_model(f"local-dir:{source.folder}", pretrained=True)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The weights in {source.folder / WEIGHTS} cannot be loaded: {_first_line(error)}."
        ) from None
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError(f"The weights in {source.folder / WEIGHTS} are not finite numbers.")
    return network.float().eval()


def _first_line(error: BaseException) -> str:
    """What an error says, without a full stop; torch says what is wrong in its second line."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()[:150]}"
    return first.rstrip(".")
