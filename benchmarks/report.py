"""Write measurements as tables and a figure."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.compared import PHOTOS, RAW, SAME_ENGINE
from benchmarks.machine import describe, processor
from benchmarks.networks import NETWORKS, ROOT
from benchmarks.plot import plot
from benchmarks.results import Medians, Results, Row

RESULTS = ROOT / "benchmarks" / "results.json"
"""Every round's figures of the last whole run on this machine; git ignores it."""
FIGURE = ROOT / "imgs" / "benchmark.svg"
DOCUMENT = ROOT / "docs" / "performance.md"
RATES = ("rate_8", "rate_1")
HEAD = (
    "| | engine | request | 8 clients: requests/s | × | p99 ms | core-ms "
    "| 1 client: requests/s | × | p50 ms | p99 ms | memory MiB | ready s |\n"
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def write(
    results: Results, failed: Mapping[str, str], rounds: int, seconds: float, keep: bool
) -> None:
    """Print the tables; with `keep`, also write them into docs/performance.md, with the figure."""
    medians = {
        row: {name: median(values) for name, values in figures.items()}
        for row, figures in results.items()
    }
    tables_and_notes = f"{tables(medians)}\n\n{notes(describe(), rounds, seconds, failed)}"
    print(f"\n{tables_and_notes}")
    if keep:
        rows = [{**vars(row), "rounds": dict(figures)} for row, figures in results.items()]
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
        plot(medians, processor(), FIGURE)
        update(DOCUMENT, tables_and_notes)


def tables(medians: Medians) -> str:
    """Return two tables for each network: the cat in each format, and larger files."""
    parts = []
    for network in NETWORKS:
        rows = [row for row in medians if row.network == network.name and row.workload]
        cat = [row for row in rows if row.workload not in PHOTOS]
        photos = [row for name in PHOTOS for row in rows if row.workload == name]
        if cat:
            parts.append(f"**{network.name}** ({network.description})\n\n{table(medians, cat)}")
        if photos:
            parts.append(f"**{network.name}**, larger files\n\n{table(medians, photos)}")
    return "\n\n".join(parts)


def table(medians: Medians, rows: Sequence[Row]) -> str:
    """Return a line for each row; × is the share of the best peer's rate for the same file."""
    lines = [HEAD]
    reported: set[Row] = set()
    for row in rows:
        whole = replace(row, workload="")
        once = {} if whole in reported else medians.get(whole, {})
        reported.add(whole)
        file = row.workload if row.workload in PHOTOS else RAW.name
        best = {figure: _best_peer(medians, row.network, figure, file) for figure in RATES}
        lines.append(_line(row, {**medians[row], **once}, best))
    return "\n".join(lines)


def _line(row: Row, figures: Mapping[str, float], best: Mapping[str, float | None]) -> str:
    ready = _number(figures.get("ready_s"), 1)
    if "cold_s" in figures:
        ready += f", first time {_number(figures['cold_s'], 1)}"
    cells = [
        row.server,
        row.engine,
        row.workload,
        _number(figures.get("rate_8"), 1),
        _number(_ratio(figures.get("rate_8"), best["rate_8"]), 2),
        _number(figures.get("p99_ms_8"), 1),
        _number(figures.get("core_ms_8"), 1),
        _number(figures.get("rate_1"), 1),
        _number(_ratio(figures.get("rate_1"), best["rate_1"]), 2),
        _number(figures.get("p50_ms_1"), 1),
        _number(figures.get("p99_ms_1"), 1),
        _number(figures.get("memory_mib"), 0),
        ready,
    ]
    return f"| {' | '.join(cells)} |"


def _best_peer(
    medians: Medians, network: str, figure: str, workload: str = RAW.name
) -> float | None:
    rows = [medians.get(Row(network, p.name, p.engine, workload), {}) for p in SAME_ENGINE]
    return max((row[figure] for row in rows if figure in row), default=None)


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def notes(machine: str, rounds: int, seconds: float, failed: Mapping[str, str]) -> str:
    """Return how to read the tables."""
    text = (
        f"{machine}. All servers of a network run at once, and one at a time gets load: {rounds} "
        f"rounds of {seconds:g} s each, twice that for larger files. The figures are medians. The "
        f"load comes from the same machine: wrk over HTTP with keep-alive; a Python client over "
        f"gRPC, which uses more CPU than wrk, so the gRPC figures are too low. The image is "
        f"`imgs/cat.jpg`, 451×300. The larger files are a photograph with a camera's grain, of "
        f"1152×864, 2000×1500 and 4000×3000 pixels; the JPEGs have quality 88. Before the load, "
        f"eight clients at once get the same five labels from every server that computes in fp32. "
        f"× is relative to the best peer with OpenVINO that gets the same file; all of them run "
        f"the network that this runtime converts. The engine alone is the limit: one image in "
        f"each of its infer requests, two per stream, without decoding and without HTTP; it is "
        f"measured before and after the servers. Core-ms is the CPU time of all processes of a "
        f"server per request. Memory is their proportional set size after the load. Ready is the "
        f"time from the command to the first `ready`, with a converted network in the cache, or "
        f"at the first start."
    )
    return text + "".join(f" Left out: {name} ({reason})." for name, reason in failed.items())


def update(document: Path, content: str) -> None:
    """Replace what is between `<!-- benchmark -->` and `<!-- /benchmark -->`."""
    figure = f"![Requests a second and latency]({os.path.relpath(FIGURE, document.parent)})"
    before, start, rest = document.read_text().partition("<!-- benchmark -->\n")
    _, end, after = rest.partition("\n<!-- /benchmark -->")
    document.write_text(f"{before}{start}{figure}\n\n{content}{end}{after}")
