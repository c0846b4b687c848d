"""A timm checkpoint on disk: its labels, its preprocessing and its network."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mlserver_timm.errors import CheckpointError

if TYPE_CHECKING:  # torch takes seconds to import, and a converted model does without it
    from torch import nn

MAX_CLASSES = 10**6
"""Fifty times ImageNet-22k; each class has a label before the network is built."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLE = "pytorch_model.bin"

FLOATS = ("F", "BF")
"""How safetensors' types of floats begin."""

IMAGENET_TAG = re.compile(r"in(1k|12k|2[12]k)(?![a-z0-9])")
"""The data set in timm's tags; if there are several, the weights were trained on the last one
last."""

Edge = Annotated[int, Field(ge=1, le=4096)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder in timm's format, and its name in messages and metadata."""

    folder: Path
    name: str
    fallback: bool = False
    notice: str | None = None
    """Why it is served in place of the requested one."""
    exported: bool = False
    """Whether the folder is an ExportedModel."""

    def __post_init__(self) -> None:
        for name in () if self.exported else (CONFIG, WEIGHTS):
            self._check_file(self.folder / name)

    def _check_file(self, path: Path) -> None:
        if not os.path.isfile(path):  # Path.is_file raises if the folder may not be read
            hint = f"A checkpoint is a folder with {CONFIG} and {WEIGHTS}"
            if os.path.exists(self.folder / PICKLE):
                hint = f"Its {PICKLE} is not read, because a pickle can run code"
            raise CheckpointError(
                f"The checkpoint folder {self.folder} has no {path.name}. {hint}: save it by "
                f"timm.models.save_for_hf(model, folder, safe_serialization=True)."
            )
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"No permission to read {path}: run chmod a+r {path}.")

    def digest(self) -> str:
        """Return the SHA-256 of the configuration and the weights, in hexadecimal."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            with open(self.folder / name, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        return digest.hexdigest()


class Description(BaseModel):
    """Labels and preprocessing of a checkpoint."""

    model_config = ConfigDict(frozen=True, strict=True)

    architecture: str
    labels: list[str] = Field(min_length=1)
    """One for each class."""
    assumed_labels: str | None = None
    """The ImageNet subset of `labels`, if only the number of classes suggests it."""
    input_size: tuple[Edge, Edge]
    """Height and width, pixels."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[Deviation, Deviation, Deviation]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    crop_pct: float = Field(ge=0.1, le=2)
    crop_mode: Literal["center", "squash", "border"]


def describe(checkpoint: Checkpoint) -> Description:
    """Return labels and preprocessing of a checkpoint as timm reads them; raises
    CheckpointError."""
    from timm.data import resolve_data_config

    config, architecture, model_args = _config(checkpoint)
    data = resolve_data_config(pretrained_cfg=config)
    size = data["input_size"]
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} has the input_size {size!r}: expected three numbers."
        )
    if size[0] != 3:
        raise CheckpointError(
            f"{checkpoint.name} takes {size[0]} channels: only RGB checkpoints can be served."
        )
    labels, assumed_labels = _labels(config, model_args, checkpoint)
    fields = {name: data[name] for name in ("interpolation", "crop_pct", "crop_mode")}
    try:
        return Description(
            architecture=architecture,
            labels=labels,
            assumed_labels=assumed_labels,
            input_size=tuple(size[1:]),
            mean=_as_tuple(data["mean"]),
            std=_as_tuple(data["std"]),
            **fields,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG} has an invalid '{problem['loc'][0]}', "
            f"{str(problem['input'])[:60]!r}: {problem['msg']}."
        ) from None


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


def _config(checkpoint: Checkpoint) -> tuple[dict[str, Any], str, dict[str, Any]]:
    from timm.models import is_model
    from timm.models._hub import load_model_config_from_path

    path = checkpoint.folder / CONFIG
    try:
        with _for_timm(checkpoint) as folder:
            config, architecture, model_args = load_model_config_from_path(folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a timm model configuration: {first_line(error)}."
        ) from None
    if not isinstance(architecture, str) or not is_model(architecture):
        raise CheckpointError(
            f"{path} has the unknown architecture '{architecture}': correct it, or install a timm "
            f"that has it."
        )
    classes = config.get("num_classes")
    if type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
        raise CheckpointError(
            f"{path} has the num_classes {str(classes)[:40]}: expected a whole number from 1 to "
            f"{MAX_CLASSES}."
        )
    return config, architecture, model_args or {}


@contextmanager
def _for_timm(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield the folder, or a draft of it whose config.json timm can read.

    transformers writes null for absent values, which timm does not accept, and some of its versions
    write labels as `id2label`.
    """
    try:
        config = json.loads((checkpoint.folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        config = None  # timm says what is wrong
    cleaned = _without_nulls(config)
    if isinstance(cleaned, dict) and "label_names" not in cleaned and "id2label" in cleaned:
        cleaned["label_names"] = cleaned["id2label"]
    if cleaned == config:
        yield checkpoint.folder
        return
    with TemporaryDirectory() as draft:
        (Path(draft) / CONFIG).write_text(json.dumps(cleaned))
        (Path(draft) / WEIGHTS).symlink_to((checkpoint.folder / WEIGHTS).absolute())
        yield Path(draft)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return value


def _labels(
    config: dict[str, Any], model_args: dict[str, Any], checkpoint: Checkpoint
) -> tuple[list[str], str | None]:
    """Return the checkpoint's labels, else ImageNet's for its number of classes, else indices.

    Also returns the ImageNet subset if only the number of classes suggests it. A tag such as
    `a1_in1k` names the data set of weights on the hub. Fine-tuned weights keep the tag, but timm
    saves them with the `num_classes` that they were made with. timm's order of 21841 classes is
    TinyViT's, as the authors' 1k-to-22k index file shows.
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
                f"The labels of {checkpoint.name} are invalid: {first_line(error)}."
            ) from None
        if any(i >= classes for i in labels) or len(labels) != classes:
            raise CheckpointError(
                f"{checkpoint.name} has {classes} classes but names {len(labels)} labels."
            )
        return [labels[i] for i in range(classes)], None
    subset = infer_imagenet_subset(config)
    if not subset:
        return [str(i) for i in range(classes)], None
    trained_on = IMAGENET_TAG.findall(str(config.get("tag")))
    is_known = trained_on and trained_on[-1] in subset and "num_classes" not in model_args
    return ImageNetInfo(subset).label_descriptions(), None if is_known else subset


def load_network(checkpoint: Checkpoint) -> "nn.Module":
    """Return the torch module with its weights, float32, in evaluation mode, on the CPU."""
    import torch
    from timm import create_model

    try:
        with _for_timm(checkpoint) as folder:
            network = create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # architectures raise anything for arguments they do not know
        raise CheckpointError(
            f"The weights in {checkpoint.folder / WEIGHTS} cannot be loaded: {first_line(error)}."
        ) from None
    _check_types(checkpoint, network)
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError(
            f"The weights in {checkpoint.folder / WEIGHTS} contain NaN or infinity."
        )
    return network.float().eval()


def _check_types(checkpoint: Checkpoint, network: "nn.Module") -> None:
    """Raise CheckpointError for integers in place of floats, which torch would convert."""
    from safetensors import safe_open

    state = network.state_dict()
    with safe_open(checkpoint.folder / WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dictionary
            kind = file.get_slice(name).get_dtype()
            if name in state and state[name].is_floating_point() and not kind.startswith(FLOATS):
                raise CheckpointError(
                    f"The weights in {checkpoint.folder / WEIGHTS} have the type {kind} for "
                    f"'{name}': save them as floats, not quantized."
                )


def first_line(error: BaseException) -> str:
    """Return an error's message without a full stop; torch gives the reason in its second line."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()[:150]}"
    return first.rstrip(".")
