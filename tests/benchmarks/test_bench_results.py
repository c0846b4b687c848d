"""From figures to tables, documents and aims; a run that is broken off goes on."""

from pathlib import Path

import aims
import pytest
import report
from compared import FP32, NUMPY, OPENVINO, RAW, SAME_ENGINE, STRAIGHTFORWARD
from inputs import SAMPLE, TINYVIT
from progress import Progress
from results import ALONE, BARE, Row


def medians(ours: float = 60.0, peer: float = 50.0) -> aims.Medians:
    found: dict[Row, dict[str, float]] = {}
    for network in (TINYVIT, SAMPLE):
        for number, server in enumerate(SAME_ENGINE):
            row = Row(network.name, server.name, server.engine, RAW.name)
            found[row] = {"rate_8": peer - number, "rate_1": peer / 2, "p99_ms_8": 200 + number}
        row = Row(network.name, FP32.name, FP32.engine, RAW.name)
        found[row] = {"rate_8": ours, "rate_1": ours, "p99_ms_8": 150, "p50_ms_1": 20}
        found[row.asked("")] = {"ready_s": 1.5, "memory_mib": 500}
        found[Row(network.name, BARE, OPENVINO, ALONE)] = {"rate_8": 64.0}
        row = Row(network.name, STRAIGHTFORWARD.name, STRAIGHTFORWARD.engine, NUMPY.name)
        found[row] = {"rate_8": 10.0, "p50_ms_1": 100}
    return found


def verdicts(found: aims.Medians) -> dict[str, str]:
    return {aim.text: str(aim) for aim in aims.aims(found)}


def test_aims_met_and_not() -> None:
    best = f"{TINYVIT.name}, fp32, {RAW.name}, 8 clients, × the best peer"
    assert verdicts(medians())[best].endswith("1.20 (aim ≥ 1): met")
    assert verdicts(medians(ours=45))[best].endswith("0.90 (aim ≥ 1): NOT MET")


def test_shorter_is_better_where_it_is() -> None:
    text = f"{TINYVIT.name}, fp32, p99 at 8 clients, × the shortest of a peer's"
    assert verdicts(medians())[text].endswith("0.75 (aim ≤ 0.85): met")


def test_what_was_not_measured_is_not_met() -> None:
    found = {row: value for row, value in medians().items() if row.engine != OPENVINO}
    reached = aims.aims(found)
    assert len(reached) == len(aims.aims(medians()))
    assert all(str(aim).endswith("NOT MEASURED") and not aim.met for aim in reached)


def test_table_counts_in_the_best_peer() -> None:
    lines = report.table(medians(), TINYVIT.name).splitlines()
    (ours,) = [line for line in lines if line.startswith(f"| {FP32.name} |")]
    assert f"| {OPENVINO} | {RAW.name} | 60.0 | 1.20 |" in ours and ours.endswith("| 500 | 1.5 |")


def test_ratios_split_what_is_gained() -> None:
    assert f"| {TINYVIT.name}, × the straightforward runtime | 6.00 | 5.00 | 1.20 |" in (
        report.ratios(medians())
    )


def test_documents_get_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "performance.md"
    document.write_text("a\n<!-- benchmark ratios -->\nold\n<!-- /benchmark ratios -->\nb\n")
    report._into(document, {"benchmark": "table", "benchmark ratios": "new"})
    assert document.read_text() == (
        "a\n<!-- benchmark ratios -->\nnew\n<!-- /benchmark ratios -->\nb\n"
    )


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    row = Row("network", "server", "engine", "way")
    first = Progress(tmp_path / "run", [3, 5.0])
    first.results[row]["rate_8"].append(1.0)
    first.finish("one")
    first.results[row]["rate_8"].append(2.0)  # of a step that is never finished
    again = Progress(tmp_path / "run", [3, 5.0])
    assert again.done("one") and not again.done("two")
    again.results[row]["rate_8"].append(3.0)
    assert again.results[row]["rate_8"] == [1.0, 3.0]


@pytest.mark.parametrize("other", [{"settings": [1, 5.0]}, {"fresh": True}])
def test_another_run_begins_anew(tmp_path: Path, other: dict) -> None:
    Progress(tmp_path / "run", [3, 5.0]).finish("one")
    options = {"settings": [3, 5.0], **other}
    assert not Progress(tmp_path / "run", **options).done("one")


def test_a_failed_peer_leaves_no_figures(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "run", [])
    failed, other = Row("n", "peer", "e", "way"), Row("n", "other", "e", "way")
    for row in (failed, other):
        progress.results[row]["rate_8"].append(1.0)
    progress.leave_out("peer", "e", "it died")
    assert list(progress.results) == [other] and progress.left_out == {"peer, e": "it died"}
