"""The lab's first runtime: one image a request, eager torch, NumPy in and labels out."""

from typing import List  # decode_args finds codecs for typing.List only  # noqa: UP035

import numpy as np
import timm
import torch
from mlserver import MLModel
from mlserver.codecs import decode_args
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config


class TinyViTModel(MLModel):
    async def load(self) -> bool:
        checkpoint = f"local-dir:{self.settings.parameters.uri}"
        self._network = timm.create_model(checkpoint, pretrained=True).eval()
        self._transform = create_transform(**resolve_data_config(model=self._network))
        self._info = ImageNetInfo(infer_imagenet_subset(self._network))
        return True

    @decode_args
    async def predict(self, payload: np.ndarray) -> List[str]:  # noqa: UP006
        image = Image.fromarray(payload.astype(np.uint8))
        with torch.no_grad():
            logits = self._network(self._transform(image).unsqueeze(0))
        best = logits.softmax(dim=1).topk(5).indices[0]
        return [self._info.index_to_description(int(i)) for i in best]
