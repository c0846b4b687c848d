"""A timm checkpoint on disk: its labels, its preprocessing and its network."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mlserver_timm.errors import CheckpointError

if TYPE_CHECKING:  # torch takes seconds to import, and a converted model does without it
    from torch import nn

MAX_CLASSES = 10**6
"""Fifty times those of ImageNet-22k; each has a label before the network is looked at."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLE = "pytorch_model.bin"

IMAGENET_TAG = re.compile(r"in(1k|12k|2[12]k)(?![a-z0-9])")
"""How timm's tags name the data set of the weights; of several the last was trained on last."""

Edge = Annotated[int, Field(ge=1, le=4096)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder in timm's format, and how it is called in front of people."""

    folder: Path
    name: str
    fallback: bool = False
    notice: str | None = None
    """Why it is served in the place of the one asked for, for people."""
    exported: bool = False
    """Whether the folder is an ExportedModel, which is checked when it is read."""

    def __post_init__(self) -> None:
        for name in () if self.exported else (CONFIG, WEIGHTS):
            self._check_file(self.folder / name)

    def _check_file(self, path: Path) -> None:
        if not os.path.isfile(path):  # Path.is_file raises where the folder may not be read
            pickled = (self.folder / PICKLE).exists()
            raise CheckpointError(
                f"The checkpoint folder {self.folder} has no {path.name}. "
                + (
                    f"Its {PICKLE} is not read, since a pickle may run code: save it "
                    if pickled
                    else f"A checkpoint is a folder with {CONFIG} and {WEIGHTS}, saved "
                )
                + "by timm.models.save_for_hf(model, folder, safe_serialization=True)."
            )
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"This user may not read {path}: chmod a+r {path} helps.")

    def digest(self) -> str:
        """SHA-256 over the configuration and the weights, in hexadecimal."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            with open(self.folder / name, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        return digest.hexdigest()


class Description(BaseModel):
    """What has to be known of a checkpoint besides its weights."""

    model_config = ConfigDict(frozen=True, strict=True)

    architecture: str
    labels: list[str] = Field(min_length=1)
    """One a class, best described name first."""
    assumed_labels: str | None = None
    """The ImageNet subset of `labels`, where nothing but the number of classes speaks for it."""
    input_size: tuple[Edge, Edge]
    """Height and width, pixels."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[Deviation, Deviation, Deviation]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    crop_pct: float = Field(ge=0.1, le=2)
    crop_mode: Literal["center", "squash", "border"]


def describe(checkpoint: Checkpoint) -> Description:
    """Labels and preprocessing of the checkpoint, as timm reads them; raises CheckpointError."""
    from timm.data import resolve_data_config

    config, architecture, model_args = _config(checkpoint)
    data = resolve_data_config(pretrained_cfg=config)
    size = data["input_size"]
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} has the input_size {size!r}, which is not three numbers."
        )
    if size[0] != 3:
        raise CheckpointError(
            f"{checkpoint.name} takes {size[0]} channels; only RGB checkpoints can be served."
        )
    fields = {name: data[name] for name in ("interpolation", "crop_pct", "crop_mode")}
    try:
        return Description(
            architecture=architecture,
            labels=_labels(config, checkpoint),
            assumed_labels=_assumed_labels(config, model_args),
            input_size=tuple(size[1:]),
            mean=_as_tuple(data["mean"]),
            std=_as_tuple(data["std"]),
            **fields,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} has a '{problem['loc'][0]}' that cannot be served: "
            f"{problem['msg']}, and it is {str(problem['input'])[:60]!r}."
        ) from None


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


def _config(checkpoint: Checkpoint) -> tuple[dict[str, Any], str, dict[str, Any]]:
    from timm.models import is_model
    from timm.models._hub import load_model_config_from_path

    path = checkpoint.folder / CONFIG
    try:
        config, architecture, model_args = load_model_config_from_path(checkpoint.folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a timm model configuration: {first_line(error)}."
        ) from None
    if not isinstance(architecture, str) or not is_model(architecture):
        raise CheckpointError(
            f"{path} names the architecture '{architecture}', which this timm does not have."
        )
    classes = config.get("num_classes")
    if type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
        raise CheckpointError(
            f"{path} has the num_classes {str(classes)[:40]}; a classifier has a whole number from "
            f"1 to {MAX_CLASSES}."
        )
    return config, architecture, model_args or {}


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
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                f"The labels of {checkpoint.name} are not usable: {first_line(error)}."
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


def _assumed_labels(config: dict[str, Any], model_args: dict[str, Any]) -> str | None:
    """The ImageNet subset whose labels are taken for the number of classes alone.

    A tag such as `a1_in1k` names the data set of the weights on the hub. Weights that were trained
    from them on other classes inherit it; timm saves those with the number of classes they were
    made with.
    """
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset(config)
    if config.get("label_names") or not subset:
        return None
    trained_on = IMAGENET_TAG.findall(str(config.get("tag")))
    if trained_on and trained_on[-1] in subset and "num_classes" not in model_args:
        return None
    return subset


def load_network(checkpoint: Checkpoint) -> "nn.Module":
    """The torch module with the checkpoint's weights, in evaluation mode, on the CPU, float32."""
    import torch
    from timm import create_model

    try:
        network = create_model(f"local-dir:{checkpoint.folder}", pretrained=True)
    except Exception as error:  # architectures raise what they like on arguments they do not know
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
