"""The servers that are compared: how each is started, asked, and weighed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from grpc_load import request_for
from inputs import ROOT

from load import BenchmarkError, Measurement, grpc, http

sys.path.insert(0, str(ROOT / "client"))

from local import LocalServer, ServerFailed, free_ports, start

PEERS = Path(__file__).resolve().parent / "peers"
LITSERVE = ROOT / ".venv-litserve"
HUGGINGFACE = ROOT / ".venv-huggingface"


@dataclass(frozen=True)
class Way:
    """One way to send the cat: `path` is empty for gRPC."""

    name: str
    path: str
    body: str
    content_type: str

    def measure(
        self, server: LocalServer, bodies: Path, clients: int, seconds: float
    ) -> Measurement:
        """The load that so many clients make; raises BenchmarkError for any answer but 2xx."""
        body = bodies / self.body
        if not self.path:
            return grpc(server.grpc, "tinyvit", body, clients, seconds)
        return http(server.url + self.path, body, self.content_type, clients, seconds)

    def labels(self, server: LocalServer, bodies: Path) -> list[str]:
        """The answer's labels, best first; raises BenchmarkError for any answer but 2xx."""
        body = (bodies / self.body).read_bytes()
        if not self.path:
            return _labels_by_grpc(server.grpc, body)
        headers = {"Content-Type": self.content_type}
        answer = requests.post(server.url + self.path, body, headers=headers, timeout=60)
        if not answer.ok:
            raise BenchmarkError(f"{answer.url} answered {answer.status_code}: {answer.text[:300]}")
        return _labels_in(answer.json())


def _labels_by_grpc(address: str, picture: bytes) -> list[str]:
    import grpc as library
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    with library.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request_for("tinyvit", picture))
    return [label.decode() for label in answer.outputs[0].contents.bytes_contents]


def _labels_in(answer: Any) -> list[str]:
    """Finds the labels in what any of the compared servers answers."""
    if isinstance(answer, str):
        return [answer] if not answer.startswith(("{", "[")) else _labels_in(json.loads(answer))
    if isinstance(answer, list):
        return [label for element in answer for label in _labels_in(element)]
    for key in ("outputs", "data", "labels", "label"):
        if key in answer:
            found = answer[key]
            return _labels_in(found[:1] if key == "outputs" else found)
    raise BenchmarkError(f"No labels in {str(answer)[:300]}")


INFER = "/v2/models/tinyvit/infer"
JSON, JPEG = "application/json", "image/jpeg"
NUMPY = Way("NumPy JSON", INFER, "cat.numpy.json", JSON)
BASE64 = Way("JPEG, base64 in JSON", INFER, "cat.base64.json", JSON)
RAW = Way("JPEG as it is", "/v2/models/tinyvit/classify", "cat.jpg", JPEG)
GRPC = Way("JPEG, gRPC", "", "cat.jpg", "")
BIG = Way("12-megapixel JPEG", RAW.path, "big.jpg", JPEG)


@dataclass(frozen=True)
class Server:
    """One of the compared: `folder` for `mlserver start`, or else a `script` taking checkpoint and
    port. `exact` ones must agree on the labels."""

    name: str
    ways: tuple[Way, ...]
    folder: Path | None = None
    script: Path | None = None
    environment: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/v2/models/tinyvit/ready"
    exact: bool = True

    def start(self, checkpoint: Path, work: Path) -> LocalServer:
        """Starts it; `work` takes its log and what else it leaves."""
        binaries = self.environment / "bin" if self.environment else Path(sys.executable).parent
        variables = {
            "MLSERVER_MODEL_URI": str(checkpoint),
            "MLSERVER_METRICS_DIR": str(work / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
            "TINYVIT_CACHE_DIR": str(work / "cache"),
            "HF_HUB_OFFLINE": "1",
            **self.variables,
        }
        log = work / "log"
        if self.folder:
            return start(self.folder, variables, log, work, binaries / "mlserver")
        port = free_ports(1)[0]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(binaries / "python"), str(self.script), str(checkpoint), str(port)],
                env={**os.environ, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                start_new_session=True,
            )
        return LocalServer(process, port, 0, 0, log)


def ours(name: str, precision: str, **options: Any) -> Server:
    """This project's runtime, as shipped unless `options` say otherwise."""
    options = {"folder": ROOT / "tinyvit", "ways": (NUMPY, BASE64, RAW, GRPC), **options}
    variables = {"TINYVIT_PRECISION": precision, **options.pop("variables", {})}
    return Server(name, variables=variables, **options)


STRAIGHTFORWARD = Server(
    "One-image MLServer runtime, eager torch",
    (Way(NUMPY.name, "/v2/models/straightforward/infer", NUMPY.body, JSON),),
    folder=PEERS / "straightforward",
    ready="/v2/models/straightforward/ready",
)
FASTAPI = Server(
    "FastAPI, eager torch",
    (Way(RAW.name, "/classify", RAW.body, JPEG),),
    script=PEERS / "fastapi_torch.py",
    ready="/health",
)
LIT = Server(
    "LitServe, eager torch",
    (Way(BASE64.name, "/predict", "cat.litserve.json", JSON),),
    script=PEERS / "litserve_torch.py",
    environment=LITSERVE,
    ready="/health",
)
HF = Server(
    "MLServer's Hugging Face runtime",
    (Way(BASE64.name, "/v2/models/huggingface/infer", "cat.huggingface.json", JSON),),
    folder=ROOT / "huggingface",
    environment=HUGGINGFACE,
    ready="/v2/models/huggingface/ready",
    exact=False,
)
FP32 = ours("This runtime, fp32", "fp32")
BF16 = ours("This runtime, bf16", "bf16", exact=False)


@contextlib.contextmanager
def running(server: Server, checkpoint: Path, work: Path) -> Iterator[tuple[LocalServer, float]]:
    """A ready server and the seconds that took; gone afterwards with all its processes."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = server.start(checkpoint, work)
    try:
        _wait(process, server.ready, started + 180)
        yield process, time.monotonic() - started
    finally:
        process.kill()


def _wait(server: LocalServer, path: str, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerFailed(
                f"exit status {server.process.returncode}\n{server.output()[-4000:]}"
            )
        with contextlib.suppress(requests.RequestException):
            if requests.get(server.url + path, timeout=5).ok:
                return
        time.sleep(0.05)
    raise ServerFailed(f"not ready in time\n{server.output()[-4000:]}")


def check(server: LocalServer, way: Way, bodies: Path) -> list[str]:
    """The labels for the cat; raises BenchmarkError unless eight clients at once all get them.

    Returns when nothing of an earlier load, whose last requests wrk does not wait for, is left.
    """
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: way.labels(server, bodies), range(8)))
    if not answers[0] or any(answer != answers[0] for answer in answers):
        raise BenchmarkError(f"{way.name}: eight clients with one picture were told {answers}.")
    return answers[0]


def memory(server: LocalServer) -> float:
    """MiB that the server's processes hold: proportional set size, so that what they share counts
    once. Nothing where the system does not tell."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            session = int(stat.read_text().rpartition(")")[2].split()[3])
            if session == server.process.pid:
                total += _pss(stat.with_name("smaps_rollup").read_text())
    return total / 1024


def _pss(smaps: str) -> int:
    return next(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Pss:"))


def ensure_litserve() -> bool:
    """Whether LitServe can be run; makes its environment where there is none.

    Apart, it gets the newest FastAPI, Starlette and uvloop, which MLServer would hold back, and
    changes nothing for MLServer. torch, torchvision, timm and Pillow, 5 GB, are the same for both:
    a .pth file, which comes second on the path, lets it find those of this environment.
    """
    if not (LITSERVE / "complete").exists():
        shutil.rmtree(LITSERVE, ignore_errors=True)
        python = LITSERVE / "bin" / "python"
        try:
            subprocess.run([sys.executable, "-m", "venv", str(LITSERVE)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", "litserve"], check=True)
        except subprocess.CalledProcessError as error:
            print(f"LitServe is left out, for it could not be installed: {error}", file=sys.stderr)
            return False
        (_site_packages(python) / "torch-and-timm.pth").write_text(
            f"{_site_packages(Path(sys.executable))}\n"
        )
        (LITSERVE / "complete").touch()
    return True


def _site_packages(python: Path) -> Path:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([str(python), "-c", program], text=True).strip())


def compared() -> list[Server]:
    """All that can be run here, in the table's order."""
    servers = [STRAIGHTFORWARD, FASTAPI]
    servers += [LIT] if ensure_litserve() else []
    servers += [HF] if (HUGGINGFACE / "bin" / "mlserver").exists() else []
    return [*servers, FP32, BF16]


def die_tidily() -> None:
    """Makes SIGTERM and SIGHUP end this process as an error does, servers and all."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
