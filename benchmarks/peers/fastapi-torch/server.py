"""A plain FastAPI service: a JPEG as the body, eager torch, FastAPI's own thread pool.

python server.py CHECKPOINT PORT
"""

import io
import sys

import timm
import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config

app = FastAPI()
network = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
transform = create_transform(**resolve_data_config(model=network))
info = ImageNetInfo(infer_imagenet_subset(network))


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/classify")
def classify(jpeg: bytes = Body(media_type="image/jpeg")) -> list[str]:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    with torch.inference_mode():
        logits = network(transform(image).unsqueeze(0))
    best = logits.softmax(dim=1).topk(5).indices[0]
    return [info.index_to_description(int(i)) for i in best]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False)
