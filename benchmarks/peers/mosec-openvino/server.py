"""mosec: a JPEG as the body, one worker process a core behind its HTTP server, which is Rust.

python server.py EXPORTED_FOLDER PORT

PYTHONPATH has the folder of classifier.py.
"""

import os
import sys

from classifier import CORES, WORKERS, Classifier
from mosec import Server, Worker

FOLDER = os.environ.setdefault("CLASSIFIER_FOLDER", sys.argv[1] if len(sys.argv) > 1 else "")


class Classify(Worker):
    def __init__(self) -> None:
        self._classifier = Classifier(FOLDER, streams=1, threads=CORES // WORKERS)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> list[str]:
        return self._classifier(data)


if __name__ == "__main__":
    os.environ |= {"MOSEC_PORT": sys.argv[2], "MOSEC_ADDRESS": "127.0.0.1"}
    os.environ |= {"MOSEC_TIMEOUT": "60000", "MOSEC_LOG_LEVEL": "warning"}
    del sys.argv[1:]  # mosec reads them as its own
    server = Server()
    server.append_worker(Classify, num=WORKERS)
    server.run()
