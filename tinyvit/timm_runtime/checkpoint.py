"""A timm checkpoint on disk: its labels, its preprocessing and its network."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError

if TYPE_CHECKING:  # torch takes seconds to import, and a converted model does without it
    from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder in timm's format, and how it is called in front of people."""

    folder: Path
    name: str
    fallback: bool = False
    notice: str | None = None
    """Why it is served in the place of the one asked for, for people."""

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


def describe(checkpoint: Checkpoint) -> Description:
    """Labels and preprocessing of the checkpoint, as timm reads them; raises CheckpointError."""
    from timm.data import resolve_data_config

    config, architecture = _config(checkpoint)
    data = resolve_data_config(pretrained_cfg=config)
    channels, height, width = data["input_size"]
    if channels != 3:
        raise CheckpointError(
            f"{checkpoint.name} takes {channels} channels; only RGB checkpoints can be served."
        )
    return Description(
        architecture=architecture,
        labels=_labels(config, checkpoint),
        input_size=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
    )


def _config(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    from timm.models import is_model
    from timm.models._hub import load_model_config_from_path

    try:
        config, architecture, _ = load_model_config_from_path(checkpoint.folder)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} is not a timm model configuration: {first_line(error)}."
        ) from None
    if not is_model(architecture):
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} names the architecture '{architecture}', which this "
            f"timm does not have."
        )
    return config, architecture


def _labels(config: dict[str, Any], checkpoint: Checkpoint) -> list[str]:
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
            raise CheckpointError(
                f"The labels of {checkpoint.name} are not usable: {error}"
            ) from None
        if any(i >= classes for i in labels) or len(labels) != classes:
            raise CheckpointError(
                f"{checkpoint.name} has {classes} classes but names {len(labels)} labels."
            )
        return [labels[i] for i in range(classes)]
    subset = infer_imagenet_subset(config)
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [str(i) for i in range(classes)]


def load_network(checkpoint: Checkpoint) -> "nn.Module":
    """The torch module with the checkpoint's weights, in evaluation mode, on the CPU, float32."""
    import torch
    from safetensors import SafetensorError
    from timm import create_model

    try:
        network = create_model(f"local-dir:{checkpoint.folder}", pretrained=True)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The weights in {checkpoint.folder / WEIGHTS} cannot be loaded: {first_line(error)}."
        ) from None
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError(
            f"The weights in {checkpoint.folder / WEIGHTS} are not finite numbers."
        )
    return network.float().eval()


def first_line(error: BaseException) -> str:
    """What an error says, without a full stop; torch says what is wrong in its second line."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()[:150]}"
    return first.rstrip(".")
