"""From measurements to results.json, a table, a figure, and the targets met or not."""

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from inputs import ARCHITECTURE, ROOT
from servers import (
    BASE64,
    BF16,
    BIG,
    FP32,
    HUGGINGFACE,
    LITSERVE,
    NUMPY,
    RAW,
    STRAIGHTFORWARD,
)

Results = dict[tuple[str, str], dict[str, list[float]]]
"""By server and way to ask (empty for the server as a whole), then by figure: one a round."""

HERE = Path(__file__).resolve().parent
FIGURE = ROOT / "imgs" / "benchmark.svg"
README_PART = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
LIMIT = "Engine alone, {}"
LIMIT_FP32, LIMIT_BF16 = LIMIT.format("fp32"), LIMIT.format("bf16")
ALL_LANES = "pixels, in each lane"

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("mlserver", "torch", "timm", "openvino", "fastapi", "uvicorn", "uvloop", "grpcio")


def write(results: Results, rounds: int, seconds: float, busy: list[float]) -> None:
    """Everything the benchmark leaves behind, and the targets on the terminal; `busy` is the share
    of the processor that others took before each round."""
    medians = {key: {k: median(v) for k, v in row.items()} for key, row in results.items()}
    found = Medians(medians)
    facts = machine()
    targets = list(found.targets())
    content = {
        "busy_before": busy,
        "machine": facts,
        "rounds": rounds,
        "seconds": seconds,
        "network": ARCHITECTURE,
        "results": [
            {"server": s, "request": w, "medians": medians[s, w], "rounds": row}
            for (s, w), row in results.items()
        ],
        "targets": [{"target": t.text, "measured": t.measured, "met": t.met} for t in targets],
    }
    (HERE / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    text = f"{table(medians)}\n\n{notes(facts, rounds, seconds)}\n"
    goals = "\n".join(f"- {target}" for target in targets)
    (HERE / "results.md").write_text(f"# Benchmark\n\n{text}\n## Aims\n\n{goals}\n")
    plot(medians, facts)
    _into_readme(f"![Requests a second and latency](../imgs/benchmark.svg)\n\n{text}")
    print(f"\n{text}\n{goals}")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cpu": _cpu(r"model name\s*:\s*(.*)") or platform.processor(),
        "cores": cores(),
        "features": [f for f in CPU_FLAGS if f in _cpu(r"flags\s*:\s*(.*)").split()],
        "system": platform.system(),
        "kernel": platform.release(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "wrk": _wrk(), **_versions()},
    }


def _cpu(pattern: str) -> str:
    try:
        found = re.search(pattern, Path("/proc/cpuinfo").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wrk() -> str:
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"wrk (?:debian/)?(\S+)", said)
    return found[1] if found else "unknown"


def _versions() -> dict[str, str]:
    """Of packages here, and of what is installed only in the environments of peers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for package, environment in (("litserve", LITSERVE), ("mlserver-huggingface", HUGGINGFACE)):
        name = package.replace("-", "_")
        for info in environment.glob(f"lib/python*/site-packages/{name}-*.dist-info"):
            found[package] = info.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    return found


@dataclass(frozen=True)
class Target:
    """One thing to reach: `measured` at least, or at most, `bound`."""

    text: str
    measured: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "NOT MET"
        return f"{self.text}: {self.measured:.2f} (aim {sign} {self.bound:g}): {verdict}"


class Medians:
    """The targets, computed from medians over the rounds."""

    def __init__(self, medians: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
        self._medians = medians

    def targets(self) -> "list[Target]":
        of = self._of
        lab = of(STRAIGHTFORWARD.name, NUMPY.name, "rate_8")
        lab_p50 = of(STRAIGHTFORWARD.name, NUMPY.name, "p50_ms_1")
        jpeg, raw = BASE64.name, RAW.name
        engine = of(LIMIT_FP32, ALL_LANES, "rate_8")
        small, large = of(FP32.name, raw, "p50_ms_1"), of(FP32.name, BIG.name, "p50_ms_1")
        one = "× the one-image runtime"
        return [
            Target(f"fp32, {jpeg}, {one}", of(FP32.name, jpeg, "rate_8") / lab, 3.5),
            Target(f"fp32, {raw}, {one}", of(FP32.name, raw, "rate_8") / lab, 3.5),
            Target(f"fp32, {NUMPY.name}, {one}", of(FP32.name, NUMPY.name, "rate_8") / lab, 2.5),
            Target(f"bf16, {jpeg}, {one}", of(BF16.name, jpeg, "rate_8") / lab, 5.5),
            Target(f"bf16, {raw}, {one}", of(BF16.name, raw, "rate_8") / lab, 5.5),
            Target(
                f"p50 of a lone request, fp32, {jpeg}, {one}",
                of(FP32.name, jpeg, "p50_ms_1") / lab_p50,
                0.35,
                at_least=False,
            ),
            Target(f"fp32, {jpeg}, × engine alone", of(FP32.name, jpeg, "rate_8") / engine, 0.75),
            Target(f"fp32, {raw}, × engine alone", of(FP32.name, raw, "rate_8") / engine, 0.75),
            Target("seconds to ready, warm cache", of(FP32.name, "", "ready_s"), 10, False),
            Target("GB resident, one process", of(FP32.name, "", "memory_mib") / 953.7, 1.2, False),
            Target("12-megapixel JPEG, × the small one's p50", large / small, 3, False),
        ]

    def _of(self, server: str, way: str, figure: str) -> float:
        return self._medians[server, way][figure]


def table(medians: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    """A line for each server and way to ask."""
    reference = medians[STRAIGHTFORWARD.name, NUMPY.name]["rate_8"]
    lines = [
        "| | request | 8 clients: requests/s | × | p50 ms | p99 ms "
        "| 1 client: requests/s | p50 ms | p99 ms | memory MiB | ready s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    wholes = {server: row for (server, way), row in medians.items() if not way}
    for (server, way), row in medians.items():
        if way:
            whole = wholes.pop(server, {})  # once a server: in its first line
            lines.append(_line(server, way, row, whole, reference))
    return "\n".join(lines)


def _line(
    server: str, way: str, row: Mapping[str, float], whole: Mapping[str, float], reference: float
) -> str:
    rate = row.get("rate_8")
    ready = _number(whole.get("ready_s"), 1)
    if "cold_s" in whole:
        ready = f"{ready}, first time {_number(whole['cold_s'], 1)}"
    cells = [
        server,
        way,
        _number(rate, 1),
        _number(rate / reference if rate else None, 2),
        _number(row.get("p50_ms_8"), 1),
        _number(row.get("p99_ms_8"), 1),
        _number(row.get("rate_1"), 1),
        _number(row.get("p50_ms_1"), 1),
        _number(row.get("p99_ms_1"), 1),
        _number(whole.get("memory_mib"), 0),
        ready,
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def notes(facts: Mapping[str, Any], rounds: int, seconds: float) -> str:
    """How to read the table."""
    return (
        f"{describe(facts)}. Medians of {rounds} interleaved rounds, {seconds:g} seconds each, one "
        f"server at a time, the load made on the same machine: by wrk over HTTP with connections "
        f"kept alive; over gRPC by a Python client, which takes more of the processor than wrk "
        f"does, so that those figures are too low. The network is {ARCHITECTURE}, 21841 classes, "
        f"seeded weights; the picture is `imgs/cat.jpg`, 451×300. × counts in the one-image "
        f"runtime's requests. The engine alone is called as the server calls it, with an image in "
        f"each of its lanes, two to a stream, and is the limit: no picture is decoded and nothing "
        f"is sent. Memory is the proportional set size of all of a server's processes after the "
        f"load; ready is the time from the command to the first `ready`, with a converted network "
        f"in the cache, or at the very first start."
    )


def describe(facts: Mapping[str, Any]) -> str:
    """The machine and the versions in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    features = ", ".join(f.upper().replace("_", "-") for f in facts["features"])
    return f"{facts['cpu']}, {facts['cores']} cores ({features}), {facts['date']}, {versions}"


def plot(medians: Mapping[tuple[str, str], Mapping[str, float]], facts: Mapping[str, Any]) -> None:
    """Requests a second at eight clients beside p50 at one; the same file for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tinyvit", "svg.fonttype": "path", "font.size": 9})
    import matplotlib.pyplot as plt

    rows = {k: r for k, r in medians.items() if k[1] and "rate_8" in r}
    names = [f"{server} · {way}" for server, way in rows]
    colours = [COLOURS.get(server, "#8c8c8c") for server, _ in rows]
    figure, panels = plt.subplots(1, 2, figsize=(10, 0.34 * len(rows) + 1.3), sharey=True)
    figure.patch.set_facecolor("#fbfbf8")
    _bars(panels[0], names, [r["rate_8"] for r in rows.values()], colours, "{:.0f}")
    _bars(panels[1], names, [r.get("p50_ms_1", 0) for r in rows.values()], colours, "{:.1f}")
    panels[0].set_title("Requests a second, 8 clients (more is better)", fontsize=9)
    panels[1].set_title("Median milliseconds, 1 client (less is better)", fontsize=9)
    panels[0].invert_yaxis()
    figure.text(0.01, 0.01, f"{facts['cpu']}, {facts['cores']} cores", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(FIGURE, metadata={"Date": None})
    plt.close(figure)


def _bars(panel: Any, names: list[str], values: list[float], colours: list[str], form: str) -> None:
    bars = panel.barh(names, values, color=colours)
    panel.bar_label(bars, [form.format(v) if v else "" for v in values], padding=3, fontsize=8)
    panel.set_facecolor("#fbfbf8")
    panel.set_xlim(0, 1.15 * max(values))
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.tick_params(bottom=False, labelbottom=False, left=False)


COLOURS = {
    FP32.name: "#1f6fb2",
    BF16.name: "#d9822b",
    LIMIT_FP32: "#9dbfd9",
    LIMIT_BF16: "#efc79b",
    STRAIGHTFORWARD.name: "#6b6b6b",
}


def _into_readme(text: str) -> None:
    readme = ROOT / "docs" / "performance.md"
    if readme.exists():
        old = readme.read_text()
        new = README_PART.sub(lambda found: f"{found[1]}{text}{found[2]}", old)
        if new != old:
            readme.write_text(new)
