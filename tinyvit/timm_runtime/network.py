"""The torch network of a checkpoint, from pixels to outputs, and the same for OpenVINO."""

import warnings
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint, Description, load_network
from .engines.base import EMBEDDING, LOGITS, PROBABILITIES
from .engines.openvino_import import import_openvino

if TYPE_CHECKING:
    import openvino
    from torch import Tensor, nn


def network_of(checkpoint: Checkpoint, description: Description) -> "nn.Module":
    """The network from uint8 `[N,H,W,3]` to a tuple of float32 arrays, in the order of its
    attribute `outputs`, with mean and deviation folded in; raises CheckpointError."""
    import torch

    network = load_network(checkpoint)

    class PixelNetwork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.outputs = [PROBABILITIES, LOGITS]
            if _tells_embedding(network, description.input_size):
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


def _tells_embedding(network: "nn.Module", size: tuple[int, int]) -> bool:
    """Whether the network is what timm's `forward_features` and `forward_head` make of it; some
    architectures have neither, or average several heads."""
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


def to_openvino(network: "nn.Module", input_size: tuple[int, int]) -> "openvino.Model":
    """A PixelNetwork traced by OpenVINO's frontend, its outputs named, for batches of any size.

    The frontend directly: openvino.convert_model reports its use to Intel by default.
    """
    openvino = import_openvino()
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
    for output, name in zip(model.outputs, network.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.reshape(openvino.PartialShape([-1, *input_size, 3]))
    return model
