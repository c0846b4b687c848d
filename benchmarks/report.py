"""Write measurements as tables and a figure."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.compared import NUMPY, OPENVINO, RAW, SAME_ENGINE, STRAIGHTFORWARD, THIS
from benchmarks.machine import describe, processor
from benchmarks.networks import NETWORKS, ROOT
from benchmarks.plot import plot
from benchmarks.results import BARE, PIXELS, Medians, Results, Row

RESULTS = ROOT / "benchmarks" / "results.json"
"""Every round's figures of the last whole run on this machine; git ignores it."""
FIGURE = ROOT / "imgs" / "benchmark.svg"
DOCUMENT = ROOT / "docs" / "performance.md"
HEAD = (
    "| | engine | request | 8 clients: requests/s | × | p99 ms | core-ms "
    "| 1 client: requests/s | p50 ms | p99 ms | memory MiB | ready s |\n"
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
RATIOS_HEAD = (
    "| requests/s of this runtime | 8 clients, × the straightforward runtime | of which the engine "
    "| of which the rest, × the best peer | × the engine alone | 1 client, × the best peer |\n"
    "|---|--:|--:|--:|--:|--:|"
)


def write(
    results: Results, failed: Mapping[str, str], rounds: int, seconds: float, keep: bool
) -> None:
    """Print the tables; with `keep`, also write them into docs/performance.md, with the figure."""
    medians = {
        row: {name: median(values) for name, values in figures.items()}
        for row, figures in results.items()
    }
    parts = {
        "benchmark": f"{tables(medians)}\n\n{notes(describe(), rounds, seconds, failed)}",
        "benchmark ratios": ratios(medians),
    }
    print("\n" + "\n\n".join(parts.values()))
    if keep:
        rows = [{**vars(row), "rounds": dict(figures)} for row, figures in results.items()]
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
        plot(medians, processor(), FIGURE)
        update(DOCUMENT, parts)


def tables(medians: Medians) -> str:
    """Return a table for each network, with a line for each server and workload."""
    return "\n\n".join(
        f"**{network.name}** ({network.description})\n\n{table(medians, network.name)}"
        for network in NETWORKS
        if any(row.network == network.name and row.workload for row in medians)
    )


def table(medians: Medians, network: str) -> str:
    """Return the lines of one network; × is the share of the best peer's rate."""
    best_peer = _best_peer(medians, network, "rate_8")
    lines = [HEAD]
    reported: set[Row] = set()
    for row, figures in medians.items():
        if row.workload and row.network == network:
            whole = row.with_workload("")
            once = {} if whole in reported else medians.get(whole, {})
            reported.add(whole)
            lines.append(_line(row, {**figures, **once}, best_peer))
    return "\n".join(lines)


def _line(row: Row, figures: Mapping[str, float], best_peer: float | None) -> str:
    ready = _number(figures.get("ready_s"), 1)
    if "cold_s" in figures:
        ready += f", first time {_number(figures['cold_s'], 1)}"
    cells = [
        row.server,
        row.engine,
        row.workload,
        _number(figures.get("rate_8"), 1),
        _number(_ratio(figures.get("rate_8"), best_peer), 2),
        _number(figures.get("p99_ms_8"), 1),
        _number(figures.get("core_ms_8"), 1),
        _number(figures.get("rate_1"), 1),
        _number(figures.get("p50_ms_1"), 1),
        _number(figures.get("p99_ms_1"), 1),
        _number(figures.get("memory_mib"), 0),
        ready,
    ]
    return f"| {' | '.join(cells)} |"


def ratios(medians: Medians) -> str:
    """Return what this runtime gains, and how much of it is the engine."""
    lines = [RATIOS_HEAD]
    for name in (network.name for network in NETWORKS):
        this = medians.get(Row(name, THIS, OPENVINO, RAW.name), {})
        first = Row(name, STRAIGHTFORWARD.name, STRAIGHTFORWARD.engine, NUMPY.name)
        lab = medians.get(first, {}).get("rate_8")
        bare = medians.get(Row(name, BARE, OPENVINO, PIXELS), {}).get("rate_8")
        rate, best_peer = this.get("rate_8"), _best_peer(medians, name, "rate_8")
        values = (
            _ratio(rate, lab),
            _ratio(best_peer, lab),
            _ratio(rate, best_peer),
            _ratio(rate, bare),
            _ratio(this.get("rate_1"), _best_peer(medians, name, "rate_1")),
        )
        lines.append(f"| {name} | {' | '.join(_number(value, 2) for value in values)} |")
    return "\n".join(lines)


def _best_peer(medians: Medians, network: str, figure: str) -> float | None:
    rows = [medians.get(Row(network, p.name, p.engine, RAW.name), {}) for p in SAME_ENGINE]
    return max((row[figure] for row in rows if figure in row), default=None)


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def notes(machine: str, rounds: int, seconds: float, failed: Mapping[str, str]) -> str:
    """Return how to read the tables."""
    text = (
        f"{machine}. Medians of {rounds} interleaved rounds of {seconds:g} seconds, one server at "
        f"a time. The load comes from the same machine: wrk over HTTP with keep-alive; a Python "
        f"client over gRPC, which uses more CPU than wrk, so the gRPC figures are too low. The "
        f"image is `imgs/cat.jpg`, 451×300. Before the load, eight clients at once get the same "
        f"five labels from every server that computes in fp32. × is relative to the best peer "
        f"with OpenVINO; all of them run the file that this runtime converts. The engine alone is "
        f"the limit: one image in each of its infer requests, two per stream, without decoding "
        f"and without HTTP. Core-ms is the CPU time of all processes of a server per request. "
        f"Memory is their proportional set size after the load. Ready is the time from the "
        f"command to the first `ready`, with a converted network in the cache, or at the first "
        f"start."
    )
    return text + "".join(f" Left out: {name} ({reason})." for name, reason in failed.items())


def update(document: Path, parts: Mapping[str, str]) -> None:
    """Replace what is between `<!-- NAME -->` and `<!-- /NAME -->`."""
    figure = f"![Requests a second and latency]({os.path.relpath(FIGURE, document.parent)})"
    text = document.read_text()
    for name, part in parts.items():
        content = f"{figure}\n\n{part}" if name == "benchmark" else part
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if found:
            text = before + start + content + end + after
    document.write_text(text)
