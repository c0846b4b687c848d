"""The benchmark's figure."""

from pathlib import Path
from typing import Any

from benchmarks.compared import BFLOAT16, LARGEST, OPENVINO, PHOTOS, THIS
from benchmarks.networks import NETWORKS
from benchmarks.results import BARE, Medians, Row

COLORS = {
    (THIS, OPENVINO): "#1f6fb2",
    (THIS, BFLOAT16): "#d9822b",
    (BARE, OPENVINO): "#9dbfd9",
    (BARE, BFLOAT16): "#efc79b",
}
PEER, TORCH = "#7a9a6b", "#8c8c8c"


def plot(medians: Medians, caption: str, file: Path) -> None:
    """Draw requests per second of eight clients and p50 of one, one row of panels per network.

    The same figures give the same file.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tinyvit", "svg.fonttype": "path", "font.size": 9})
    import matplotlib.pyplot as plt

    groups = [_rows(medians, network.name) for network in NETWORKS]
    heights = [len(group) + 1 for group in groups]
    size = (11, 0.3 * sum(heights) + 1)
    figure, panels = plt.subplots(
        len(groups), 2, figsize=size, sharey="row", height_ratios=heights, squeeze=False
    )
    figure.patch.set_facecolor("#fbfbf8")
    for network, group, (left, right) in zip(NETWORKS, groups, panels, strict=True):
        names = [f"{row.server} · {row.engine} · {row.workload}" for row in group]
        colors = [_color(row) for row in group]
        _bars(left, names, [medians[row]["rate_8"] for row in group], colors, "{:.0f}")
        _bars(right, names, [medians[row].get("p50_ms_1", 0) for row in group], colors, "{:.1f}")
        rate, wait = "requests a second, 8 clients", "median milliseconds, 1 client"
        left.set_title(f"{network.name}: {rate}\n(more is better)", fontsize=9, loc="left")
        right.set_title(f"{wait}\n(less is better)", fontsize=9, loc="left")
        left.invert_yaxis()
    figure.text(0.01, 0.005, caption, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _rows(medians: Medians, network: str) -> list[Row]:
    """Return the rows of the cat and of the largest photograph."""
    left_out = PHOTOS.keys() - {LARGEST}
    return [
        row
        for row, values in medians.items()
        if row.network == network and "rate_8" in values and row.workload not in left_out
    ]


def _color(row: Row) -> str:
    return COLORS.get((row.server, row.engine), PEER if row.engine == OPENVINO else TORCH)


def _bars(panel: Any, names: list[str], values: list[float], colors: list[str], form: str) -> None:
    bars = panel.barh(names, values, color=colors)
    panel.bar_label(bars, [form.format(v) if v else "" for v in values], padding=3, fontsize=8)
    panel.set_facecolor("#fbfbf8")
    panel.set_xlim(0, 1.15 * max(values, default=1) or 1)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.tick_params(bottom=False, labelbottom=False, left=False)
