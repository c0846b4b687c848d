"""Measurements become tables and documents."""

from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.compared import (
    FASTAPI,
    FP32,
    NUMPY,
    OPENVINO,
    PHOTOS,
    RAW,
    SAME_ENGINE,
    STRAIGHTFORWARD,
)
from benchmarks.networks import SAMPLE, TINYVIT
from benchmarks.results import BARE, PIXELS, Medians, Row

PHOTO = next(iter(PHOTOS))


def medians() -> Medians:
    """Figures of every server that the tables need; the best peer has 50 requests a second."""
    figures: dict[Row, dict[str, float]] = {}
    for network in (TINYVIT, SAMPLE):
        for number, server in enumerate(SAME_ENGINE):
            row = Row(network.name, server.name, server.engine, RAW.name)
            figures[row] = {"rate_8": 50 - number, "rate_1": 25.0}
        row = Row(network.name, FP32.name, FP32.engine, RAW.name)
        figures[row] = {"rate_8": 60.0, "rate_1": 35.0, "p50_ms_1": 20}
        figures[replace(row, workload="")] = {"ready_s": 1.5, "memory_mib": 500}
        figures[Row(network.name, BARE, OPENVINO, PIXELS)] = {"rate_8": 64.0}
        row = Row(network.name, STRAIGHTFORWARD.name, STRAIGHTFORWARD.engine, NUMPY.name)
        figures[row] = {"rate_8": 10.0}
    return figures


def test_table_is_relative_to_the_best_peer() -> None:
    figures = {
        **medians(),
        Row(TINYVIT.name, FP32.name, FP32.engine, PHOTO): {"rate_8": 30.0, "rate_1": 8.0},
        Row(TINYVIT.name, FASTAPI.name, FASTAPI.engine, PHOTO): {"rate_8": 20.0, "rate_1": 10.0},
    }
    lines = report.tables(figures).splitlines()
    of_the_cat, of_the_photo, other_network = (
        line for line in lines if line.startswith(f"| {FP32.name} |")
    )
    assert f"| {OPENVINO} | {RAW.name} | 60.0 | 1.20 |  |  | 35.0 | 1.40 | 20.0 |" in of_the_cat
    assert of_the_cat.endswith("| 500 | 1.5 |")
    assert f"| {PHOTO} | 30.0 | 1.50 |  |  | 8.0 | 0.80 |" in of_the_photo
    assert f"| {RAW.name} | 60.0 | 1.20 |" in other_network


def test_a_missing_measurement_leaves_an_empty_cell() -> None:
    figures = {row: value for row, value in medians().items() if row.server != FASTAPI.name}
    figures[Row(TINYVIT.name, FP32.name, FP32.engine, RAW.name)] = {"rate_8": 98.0}
    assert f"| {RAW.name} | 98.0 | 2.00 |  |  |  |  |  |  | 500 | 1.5 |" in report.tables(figures)


def test_only_the_marked_part_of_a_document_changes(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("a\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nb\n")
    report.update(document, "new")
    before, figure, _, new, after, last = document.read_text().splitlines()[1:]
    assert (before, new, after, last) == ("<!-- benchmark -->", "new", "<!-- /benchmark -->", "b")
    assert figure.endswith("imgs/benchmark.svg)")
