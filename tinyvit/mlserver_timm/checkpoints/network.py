"""The network of a checkpoint from pixels to outputs, for torch and for OpenVINO."""

import warnings
from typing import TYPE_CHECKING

from mlserver_timm.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    Description,
    first_line,
    load_network,
)
from mlserver_timm.checkpoints.openvino_import import import_openvino
from mlserver_timm.errors import CheckpointError

if TYPE_CHECKING:
    import openvino
    from torch import Tensor, nn


PROBABILITIES, LOGITS, EMBEDDING = "probabilities", "logits", "embedding"
"""Names of a network's outputs: float32 `[N,classes]`, `[N,classes]` and `[N,D]`."""

TOLERANCE = 1e-4
"""Largest difference between the outputs of OpenVINO in fp32 and those of torch."""


def network_of(checkpoint: Checkpoint, description: Description) -> "nn.Module":
    """Return the network from uint8 `[N,H,W,3]` to a tuple of float32 tensors.

    Its attribute `outputs` names them in order. Normalization is part of the network. Raises
    CheckpointError.
    """
    network = load_network(checkpoint)
    try:
        return _checked(_pixel_network(network, description), checkpoint, description)
    except Exception as error:  # a network built from a wrong config.json can raise anything
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The network of {checkpoint.name} fails on images of the size in its {CONFIG}: "
            f"{first_line(error)}."
        ) from None


def _pixel_network(network: "nn.Module", description: Description) -> "nn.Module":
    import torch

    class PixelNetwork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.outputs = [PROBABILITIES, LOGITS]
            if _has_embedding(network, description.input_size):
                self.outputs.append(EMBEDDING)
            std, mean = torch.tensor(description.std), torch.tensor(description.mean)
            self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

        def forward(self, pixels: "Tensor") -> "tuple[Tensor, ...]":
            x = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
            if EMBEDDING not in self.outputs:
                logits = self.network(x).float()
                return logits.softmax(-1), logits
            features = self.network.forward_features(x)
            logits = self.network.forward_head(features).float()
            embedding = self.network.forward_head(features, pre_logits=True).float()
            return logits.softmax(-1), logits, embedding.flatten(1)

    return PixelNetwork().eval()


def _checked(network: "nn.Module", checkpoint: Checkpoint, description: Description) -> "nn.Module":
    """Return the network if it gives a finite score for each class; raises CheckpointError."""
    import torch

    with torch.inference_mode():
        outputs = network(_noise(2, description.input_size))
    shape, classes = list(outputs[0].shape), len(description.labels)
    if shape != [2, classes]:
        raise CheckpointError(
            f"{checkpoint.name} returns scores of shape {shape} for two images: num_classes in "
            f"{checkpoint.folder / CONFIG} requires [2, {classes}]."
        )
    if not all(torch.isfinite(output).all() for output in outputs):
        raise CheckpointError(f"{checkpoint.name} returns scores that are NaN or infinite.")
    return network


def _noise(count: int, size: tuple[int, int]) -> "Tensor":
    import torch

    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)


def _has_embedding(network: "nn.Module", size: tuple[int, int]) -> bool:
    """Return whether `forward_features` and `forward_head` give the network's logits.

    Some architectures have neither, or average several heads.
    """
    import torch

    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            features = network.forward_features(x)
            network.forward_head(features, pre_logits=True)
            logits = network.forward_head(features)
            return bool(torch.equal(logits, network(x)))
    except (AttributeError, TypeError):
        return False


def to_openvino(
    network: "nn.Module", checkpoint: Checkpoint, input_size: tuple[int, int]
) -> "openvino.Model":
    """Return a PixelNetwork for OpenVINO, with named outputs, for batches of any size.

    Raises CheckpointError if it cannot be converted or gives other scores.
    """
    try:
        model = _traced(network, input_size)
        difference = _largest_difference(network, model, input_size)
    except Exception as error:  # frontend and plugin raise anything
        raise CheckpointError(
            f"OpenVINO cannot compute {checkpoint.name} ({first_line(error)}): try the engine "
            f"'torch'."
        ) from None
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"OpenVINO gives other scores for {checkpoint.name} than torch, by {difference:.2g}: "
            f"use the engine 'torch'."
        )
    return model


def _traced(network: "nn.Module", input_size: tuple[int, int]) -> "openvino.Model":
    """Use OpenVINO's frontend directly: openvino.convert_model reports its use to Intel."""
    openvino = import_openvino()
    import torch
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Tracing makes sizes constant, as they are: only the batch varies.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        decoder = TorchScriptPythonDecoder(network, example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for output, name in zip(model.outputs, network.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.reshape(openvino.PartialShape([-1, *input_size, 3]))
    # Each compilation would do this first; it leaves a quarter of the operations.
    apply_moc_transformations(model, cf=True)
    return model


def _largest_difference(
    network: "nn.Module", model: "openvino.Model", input_size: tuple[int, int]
) -> float:
    """Return the largest difference of outputs, relative to an output's largest if that is over 1.

    Batches of 1 and 3 images are compared; the network was traced with 2.
    """
    openvino = import_openvino()
    import torch

    exact = {"INFERENCE_PRECISION_HINT": openvino.Type.f32}
    compiled = openvino.Core().compile_model(model, "CPU", exact)
    largest = 0.0
    for count in (1, 3):
        pixels = _noise(count, input_size)
        results = compiled([pixels.numpy()])
        with torch.inference_mode():
            outputs = network(pixels)
        for name, output in zip(network.outputs, outputs, strict=True):
            result = torch.from_numpy(results[name])
            scale = output.abs().max().clamp(min=1)
            largest = max(largest, float(((result - output).abs() / scale).max()))
    return largest
