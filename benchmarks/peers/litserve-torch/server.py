"""A LitServe service as its documentation writes one: base64 JPEG in JSON, eager torch, batches.

TORCH_PACKAGES=SITE_PACKAGES python server.py CHECKPOINT PORT
"""

import base64
import io
import os
import sys

import litserve

sys.path.append(os.environ["TORCH_PACKAGES"])  # last: all else is LitServe's own

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._device = device
        self._network = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
        self._network.to(device)
        self._transform = create_transform(**resolve_data_config(model=self._network))
        self._info = ImageNetInfo(infer_imagenet_subset(self._network))

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        data = base64.b64decode(request["image_bytes"])
        return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs).to(self._device)

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._network(batch).softmax(dim=1).topk(5).indices

    def encode_response(self, output: torch.Tensor) -> dict[str, list[str]]:
        return {"labels": [self._info.index_to_description(int(i)) for i in output]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False
    )
