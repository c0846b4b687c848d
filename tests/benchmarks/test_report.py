"""Measurements become tables and documents."""

from pathlib import Path

from benchmarks import report
from benchmarks.compared import FP32, NUMPY, OPENVINO, RAW, SAME_ENGINE, STRAIGHTFORWARD
from benchmarks.networks import SAMPLE, TINYVIT
from benchmarks.results import BARE, PIXELS, Medians, Row


def medians() -> Medians:
    """Figures of every server that the tables need; the best peer has 50 requests a second."""
    figures: dict[Row, dict[str, float]] = {}
    for network in (TINYVIT, SAMPLE):
        for number, server in enumerate(SAME_ENGINE):
            row = Row(network.name, server.name, server.engine, RAW.name)
            figures[row] = {"rate_8": 50 - number, "rate_1": 25.0}
        row = Row(network.name, FP32.name, FP32.engine, RAW.name)
        figures[row] = {"rate_8": 60.0, "rate_1": 35.0, "p50_ms_1": 20}
        figures[row.with_workload("")] = {"ready_s": 1.5, "memory_mib": 500}
        figures[Row(network.name, BARE, OPENVINO, PIXELS)] = {"rate_8": 64.0}
        row = Row(network.name, STRAIGHTFORWARD.name, STRAIGHTFORWARD.engine, NUMPY.name)
        figures[row] = {"rate_8": 10.0}
    return figures


def test_table_is_relative_to_the_best_peer() -> None:
    lines = report.table(medians(), TINYVIT.name).splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {FP32.name} |")]
    assert f"| {OPENVINO} | {RAW.name} | 60.0 | 1.20 |" in line
    assert line.endswith("| 500 | 1.5 |")


def test_ratios_split_the_gain() -> None:
    line = f"| {TINYVIT.name} | 6.00 | 5.00 | 1.20 | 0.94 | 1.40 |"
    assert line in report.ratios(medians()).splitlines()


def test_a_missing_measurement_leaves_an_empty_cell() -> None:
    figures = {row: value for row, value in medians().items() if row.server != BARE}
    line = f"| {TINYVIT.name} | 6.00 | 5.00 | 1.20 |  | 1.40 |"
    assert line in report.ratios(figures).splitlines()


def test_only_marked_parts_of_a_document_change(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("a\n<!-- benchmark ratios -->\nold\n<!-- /benchmark ratios -->\nb\n")
    report.update(document, {"benchmark": "table", "benchmark ratios": "new"})
    assert document.read_text() == (
        "a\n<!-- benchmark ratios -->\nnew\n<!-- /benchmark ratios -->\nb\n"
    )
