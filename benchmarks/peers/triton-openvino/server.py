"""Triton 2.51 itself, from PyPI's nvidia-pytriton, on a model repository with its Python backend.

python server.py EXPORTED_FOLDER PORT

PYTHONPATH has the folder of classifier.py.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytriton
from classifier import WORKERS

HERE = Path(__file__).resolve().parent
TRITON = Path(pytriton.__file__).parent / "tritonserver"

CONFIG = """
name: "classifier"
backend: "python"
max_batch_size: 8
input [{{ name: "payload", data_type: TYPE_STRING, dims: [1] }}]
output [{{ name: "labels", data_type: TYPE_STRING, dims: [5] }}]
dynamic_batching {{}}
instance_group [{{ kind: KIND_CPU, count: {workers} }}]
"""


def main(folder: str, port: str) -> None:
    repository = Path(tempfile.mkdtemp()) / "models"
    shutil.copytree(HERE / "classifier", repository / "classifier")
    (repository / "classifier" / "config.pbtxt").write_text(CONFIG.format(workers=WORKERS))
    backends = repository.with_name("backends")
    shutil.copytree(TRITON / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # A link, not a copy: the program searches its libraries relative to its real location.
    stub = "triton_python_backend_stub"
    (backends / "python" / stub).symlink_to(TRITON / "python_backend_stubs" / version / stub)
    os.environ |= {
        "CLASSIFIER_PATH": os.pathsep.join([str(HERE.parent), sysconfig.get_path("purelib")]),
        "CLASSIFIER_FOLDER": folder,
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),  # where libpython is
    }
    server = str(TRITON / "bin" / "tritonserver")
    arguments = [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--exit-timeout-secs=5",
        "--allow-grpc=false",
        "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name=benchmark-{os.getpid()}-",
        "--log-warning=false",
    ]
    os.execv(server, [server, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
