"""What the figures were measured on and with."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import environments
from compared import HUGGINGFACE

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("mlserver", "torch", "timm", "openvino", "fastapi", "uvicorn", "uvloop", "grpcio")
OF_PEERS = (
    ("fastapi", environments.folder("fastapi-openvino")),
    ("litserve", environments.folder("litserve-openvino")),
    ("mosec", environments.folder("mosec-openvino")),
    ("nvidia-pytriton", environments.folder("triton-openvino")),
    ("mlserver-huggingface", HUGGINGFACE),
)


def machine() -> dict[str, Any]:
    """Processor, system, date and versions."""
    return {
        "cpu": _cpu(r"model name\s*:\s*(.*)") or platform.processor(),
        "cores": cores(),
        "features": [f for f in CPU_FLAGS if f in _cpu(r"flags\s*:\s*(.*)").split()],
        "system": platform.system(),
        "kernel": platform.release(),
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "versions": {"python": platform.python_version(), "wrk": _wrk(), **_versions()},
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The machine and the versions in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    features = ", ".join(f.upper().replace("_", "-") for f in facts["features"])
    return f"{facts['cpu']}, {facts['cores']} cores ({features}), {facts['date']}, {versions}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu(pattern: str) -> str:
    try:
        found = re.search(pattern, Path("/proc/cpuinfo").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _wrk() -> str:
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"wrk (?:debian/)?(\S+)", said)
    return found[1] if found else "unknown"


def _versions() -> dict[str, str]:
    """Of packages here, and of those in the environments of peers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for package, environment in OF_PEERS:
        name = package.replace("-", "_")
        for info in environment.glob(f"lib/python*/site-packages/{name}-*.dist-info"):
            number = info.name.removeprefix(f"{name}-").removesuffix(".dist-info")
            found[package if package not in found else f"{package} of the peer"] = number
    return found
