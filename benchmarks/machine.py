"""The hardware and the versions that the figures belong to."""

import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from benchmarks import environments
from mlserver_timm.inference.engines.cpu import available_cores

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("mlserver", "torch", "timm", "openvino", "fastapi", "uvicorn", "uvloop", "grpcio")
PEER_PACKAGES = {
    "fastapi": "fastapi-openvino",
    "litserve": "litserve-openvino",
    "mosec": "mosec-openvino",
    "nvidia_pytriton": "triton-openvino",
}


def processor() -> str:
    """Return the processor's name and number of cores."""
    return f"{_cpuinfo('model name') or platform.processor()}, {available_cores()} cores"


def describe() -> str:
    """Return the machine, the date and all versions in one line."""
    flags = _cpuinfo("flags").split()
    features = ", ".join(f.upper().replace("_", "-") for f in CPU_FLAGS if f in flags)
    versions = {"python": platform.python_version(), "wrk": _wrk_version()}
    versions |= {package: version(package) for package in PACKAGES} | _peer_versions()
    date = datetime.now(timezone.utc).isoformat(timespec="minutes")
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{processor()} ({features}), {date}, {numbers}"


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    match = re.search(rf"{key}\s*:\s*(.*)", path.read_text() if path.exists() else "")
    return match[1] if match else ""


def _wrk_version() -> str:
    output = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return output.removeprefix("wrk ").removeprefix("debian/").partition(" ")[0]


def _peer_versions() -> dict[str, str]:
    versions = {}
    for package, peer in PEER_PACKAGES.items():
        pattern = f"lib/python*/site-packages/{package}-*.dist-info"
        for info in environments.folder(peer).glob(pattern):
            versions[f"{package} of the peer"] = info.stem.removeprefix(f"{package}-")
    return versions
