"""An image goes in as an array, the probabilities of all classes come out."""

import asyncio
import multiprocessing
import signal

if not multiprocessing.active_children():  # MLServer has no workers that it must stop first
    for number in (signal.SIGINT, signal.SIGTERM):  # end at once, during imports and load, too
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
        try:
            checkpoint = snapshot_download(HUB, allow_patterns=FILES)
        except OSError:  # no internet: the checkpoint that model-settings.json names
            checkpoint = await get_model_uri(self.settings)
        source = f"local-dir:{checkpoint}"  # loaded in a thread, so that the server answers probes
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
