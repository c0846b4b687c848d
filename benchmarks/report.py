"""From measurements to results.json, tables, a figure, and the aims met or not."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from aims import Medians, aims
from compared import NUMPY, OPENVINO, RAW, SAME_ENGINE, STRAIGHTFORWARD, THIS
from inputs import NETWORKS, ROOT
from machine import describe, machine
from plot import plot
from progress import Progress
from results import Row

HERE = Path(__file__).resolve().parent
FIGURE = ROOT / "imgs" / "benchmark.svg"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")


def write(progress: Progress, rounds: int, seconds: float, keep: bool) -> None:
    """The tables and aims on the terminal, and, to `keep`, in files and documents."""
    medians = {
        row: {name: median(values) for name, values in figures.items()}
        for row, figures in progress.results.items()
    }
    facts = machine()
    reached = aims(medians)
    parts = {
        "benchmark": f"{tables(medians)}\n\n{notes(facts, rounds, seconds, progress.left_out)}",
        "benchmark ratios": ratios(medians),
    }
    goals = "\n".join(f"- {aim}" for aim in reached)
    print(f"\n{parts['benchmark']}\n\n{parts['benchmark ratios']}\n\n{goals}")
    if not keep:
        return
    content = {
        "busy_before": progress.busy,
        "machine": facts,
        "rounds": rounds,
        "seconds": seconds,
        "left_out": progress.left_out,
        "results": [
            {**vars(row), "medians": medians[row], "rounds": figures}
            for row, figures in progress.results.items()
        ],
        "aims": [{"aim": a.text, "measured": a.measured, "met": a.met} for a in reached],
    }
    (HERE / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    text = "\n\n".join(parts.values())
    (HERE / "results.md").write_text(f"# Benchmark\n\n{text}\n\n## Aims\n\n{goals}\n")
    plot(medians, f"{facts['cpu']}, {facts['cores']} cores", FIGURE)
    for document in DOCUMENTS:
        _into(document, parts)


def tables(medians: Medians) -> str:
    """A table for each network, a line for each server and way to ask."""
    return "\n\n".join(
        f"**{network.name}** ({network.description})\n\n{table(medians, network.name)}"
        for network in NETWORKS
        if any(row.network == network.name and row.way for row in medians)
    )


def table(medians: Medians, network: str) -> str:
    """The lines of one network; × counts in the best rate of a peer with the same engine."""
    rates = [medians.get(row, {}).get("rate_8", 0) for row in _peer_rows(network)]
    lines = [
        "| | engine | request | 8 clients: requests/s | × | p99 ms | core-ms "
        "| 1 client: requests/s | p50 ms | p99 ms | memory MiB | ready s |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    told: set[Row] = set()
    for row, figures in medians.items():
        if row.way and row.network == network:
            whole = row.asked("")
            once = {} if whole in told else medians.get(whole, {})
            told.add(whole)
            lines.append(_line(row, figures, once, max(rates, default=0)))
    return "\n".join(lines)


def _peer_rows(network: str) -> list[Row]:
    return [Row(network, peer.name, peer.engine, RAW.name) for peer in SAME_ENGINE]


def _line(
    row: Row, figures: Mapping[str, float], whole: Mapping[str, float], best_peer: float
) -> str:
    rate = figures.get("rate_8")
    ready = _number(whole.get("ready_s"), 1)
    if "cold_s" in whole:
        ready = f"{ready}, first time {_number(whole['cold_s'], 1)}"
    cells = [
        row.server,
        row.engine,
        row.way,
        _number(rate, 1),
        _number(rate / best_peer if rate and best_peer else None, 2),
        _number(figures.get("p99_ms_8"), 1),
        _number(figures.get("core_ms_8"), 1),
        _number(figures.get("rate_1"), 1),
        _number(figures.get("p50_ms_1"), 1),
        _number(figures.get("p99_ms_1"), 1),
        _number(whole.get("memory_mib"), 0),
        ready,
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def ratios(medians: Medians) -> str:
    """What this runtime gains, and how much of it is the engine: a table in a few lines."""
    lines = ["| requests/s of 8 clients, × | all of it | the engine | what is around it |"]
    lines.append("|---|--:|--:|--:|")
    for network in NETWORKS:
        ours = medians.get(Row(network.name, THIS, OPENVINO, RAW.name), {}).get("rate_8")
        first = Row(network.name, STRAIGHTFORWARD.name, STRAIGHTFORWARD.engine, NUMPY.name)
        lab = medians.get(first, {}).get("rate_8")
        rows = _peer_rows(network.name)
        peers = [medians[row]["rate_8"] for row in rows if "rate_8" in medians.get(row, {})]
        if ours and lab and peers:
            best = max(peers)
            cells = f"{ours / lab:.2f} | {best / lab:.2f} | {ours / best:.2f}"
            lines.append(f"| {network.name}, × the straightforward runtime | {cells} |")
    return "\n".join(lines) if len(lines) > 2 else "Not all that ratios need was measured."


def notes(
    facts: Mapping[str, Any], rounds: int, seconds: float, left_out: Mapping[str, str]
) -> str:
    """How to read the tables."""
    text = (
        f"{describe(facts)}. Medians of {rounds} interleaved rounds, {seconds:g} seconds each, one "
        f"server at a time, the load made on the same machine: by wrk over HTTP with connections "
        f"kept alive; over gRPC by a Python client, which takes more of the processor than wrk "
        f"does, so that those figures are too low. The picture is `imgs/cat.jpg`, 451×300; before "
        f"the load each server that computes in fp32 has given eight clients at once the same five "
        f"labels. × counts in the requests of the best of the peers that use OpenVINO, which all "
        f"take the file that this runtime converted. The engine alone is called as the server "
        f"calls it, with an image in each of its infer requests, two to a stream, and is the "
        f"limit: no picture is decoded and nothing is sent. Core-ms is the time on a core that all "
        f"of a server's processes took for a request; memory their proportional set size after the "
        f"load; ready the time from the command to the first `ready`, with a converted network "
        f"in the cache, or at the very first start."
    )
    for server, reason in left_out.items():
        text += f" Left out: {server} ({reason})."
    return text


def _into(document: Path, parts: Mapping[str, str]) -> None:
    """Replaces what is between `<!-- NAME -->` and `<!-- /NAME -->`."""
    if not document.exists():
        return
    figure = f"![Requests a second and latency]({os.path.relpath(FIGURE, document.parent)})"
    old = new = document.read_text()
    for name, text in parts.items():
        content = f"{figure}\n\n{text}" if name == "benchmark" else text
        between = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        pattern = f"<!-- {name} -->.*?<!-- /{name} -->"
        new = re.sub(pattern, lambda _, between=between: between, new, flags=re.DOTALL)
    if new != old:
        document.write_text(new)
