"""LitServe: a JPEG as the body, one worker process a core, its fast queue between them.

python server.py EXPORTED_FOLDER PORT

PYTHONPATH has the folder of classifier.py.
"""

import sys
from typing import Annotated

import litserve
from classifier import CORES, WORKERS, Classifier
from fastapi import Body

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class ClassifierAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._classifier = Classifier(sys.argv[1], streams=1, threads=CORES // WORKERS)

    def decode_request(self, request: Jpeg) -> bytes:
        return request

    def predict(self, jpeg: bytes) -> list[str]:
        return self._classifier(jpeg)

    def encode_response(self, labels: list[str]) -> list[str]:
        return labels


if __name__ == "__main__":
    server = litserve.LitServer(
        ClassifierAPI(), accelerator="cpu", workers_per_device=WORKERS, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
