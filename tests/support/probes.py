"""Servers with probes: small models of this runtime and of another one."""

import json
import shutil
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer
from tests.support import clients
from tests.support.clients import body, tensor, until
from tests.support.paths import ROOT
from tests.support.servers import HOOK

MODELS = ROOT / "tests" / "hook" / "models"
RUNTIME = ROOT / "tinyvit" / "mlserver_timm"
SOON = 10.0
"""Timeout in seconds."""


@dataclass(frozen=True)
class Model:
    """A probe, which is a model of this runtime unless `ours` is false."""

    name: str = "ours"
    ours: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


OURS = Model()
OTHER = Model("other", ours=False)


def repository(
    folder: Path,
    *models: Model,
    workers: int = 0,
    edits: Mapping[str, tuple[str, str]] | None = None,
    hook: bool = True,
    **settings: Any,
) -> Path:
    """Return a model repository with probes and the package; `edits` replace text in its files."""
    root = folder / "repository"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    package = root / RUNTIME.name
    shutil.copytree(RUNTIME, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in (edits or {}).items():
        text = (package / name).read_text()
        assert old in text, f"{name} has no {old}"
        (package / name).write_text(text.replace(old, new))
    settings = {"parallel_workers": workers, **(HOOK if hook else {}), **settings}
    (root / "settings.json").write_text(json.dumps(settings))
    for model in models:
        _write_model(root / model.name, model)
    return root


def _write_model(folder: Path, model: Model) -> None:
    folder.mkdir()
    for name in ("probe.py", "ours.py") if model.ours else ("probe.py",):
        shutil.copy(MODELS / name, folder)
    settings = {
        "name": model.name,
        "implementation": "ours.Ours" if model.ours else "probe.Probe",
        "parameters": {"extra": dict(model.extra)},
        **model.settings,
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))


def encode(command: str) -> bytes:
    """Return a command with a colon: this runtime takes other words for the base64 of an image."""
    return (command if ":" in command else f"{command}:").encode()


def request(command: str) -> dict[str, Any]:
    """Return a request body; models of this runtime accept only base64 in BYTES."""
    return body(tensor(encode(command)))


def send(
    server: LocalServer, command: str, model: str = "ours", timeout: float = 30
) -> requests.Response:
    """Send a command over REST."""
    url = f"{server.url}/v2/models/{model}/infer"
    return requests.post(url, json=request(command), timeout=timeout)


def answer(server: LocalServer, command: str, model: str = "ours", timeout: float = 30) -> str:
    response = send(server, command, model, timeout)
    assert response.status_code == 200, response.text
    return response.json()["outputs"][0]["data"][0]


def message(command: str, model: str = "ours") -> pb.ModelInferRequest:
    return clients.message(bytes_contents=[encode(command)], model=model)


def stub(server: LocalServer) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc))


def code(server: LocalServer, command: str, model: str = "ours") -> grpc.StatusCode:
    """Return the status of a command over gRPC."""
    try:
        stub(server).ModelInfer(message(command, model), timeout=30)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def in_background(work: Callable[[], Any]) -> "Future[Any]":
    """Run a request in a thread of its own."""
    return ThreadPoolExecutor(1).submit(work)


def hang_up_after(server: LocalServer, command: str, begun: Path, model: str = "ours") -> None:
    """Send a command, wait until the model runs it, and close the connection."""
    data = json.dumps(request(command)).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), 10) as connection:
        connection.sendall(head.encode() + data)
        until(begun.exists)


def last_line(server: LocalServer) -> str:
    return server.output().rstrip().splitlines()[-1]
