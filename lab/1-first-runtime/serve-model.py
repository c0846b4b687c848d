"""Classify an image: input `payload`, the pixels; output, all probabilities."""

import asyncio
import multiprocessing
import signal

# Let Ctrl-C end the server at once, also during imports and load. If MLServer has worker processes,
# it must stop them first, so its own handlers stay.
if not multiprocessing.active_children():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

import numpy as np
import timm
import torch
from huggingface_hub import snapshot_download
from mlserver import MLModel
from mlserver.codecs import decode_args
from mlserver.utils import get_model_uri
from PIL import Image
from timm.data import create_transform, resolve_data_config

HUB, FILES = "timm/tiny_vit_5m_224.dist_in22k", ["config.json", "model.safetensors"]


class TinyViTModel(MLModel):
    async def load(self) -> bool:
        try:  # in threads: the server answers probes meanwhile
            checkpoint = await asyncio.to_thread(snapshot_download, HUB, allow_patterns=FILES)
        except OSError:  # no internet: use the checkpoint that model-settings.json names
            checkpoint = await get_model_uri(self.settings)
        source = f"local-dir:{checkpoint}"
        network = await asyncio.to_thread(timm.create_model, source, pretrained=True)
        self.network = network.eval()
        self.transform = create_transform(**resolve_data_config(model=self.network))
        return True

    @decode_args
    async def predict(self, payload: np.ndarray) -> np.ndarray:
        image = Image.fromarray(payload.astype(np.uint8))
        with torch.no_grad():
            logits = self.network(self.transform(image).unsqueeze(0))
        return logits.softmax(dim=1).numpy()
