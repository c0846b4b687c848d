"""The benchmark's figure."""

from pathlib import Path
from typing import Any

from aims import Medians
from compared import BFLOAT16, OPENVINO, THIS
from inputs import NETWORKS
from results import BARE, Row

COLOURS = {
    (THIS, OPENVINO): "#1f6fb2",
    (THIS, BFLOAT16): "#d9822b",
    (BARE, OPENVINO): "#9dbfd9",
    (BARE, BFLOAT16): "#efc79b",
}
PEER, TORCH = "#7a9a6b", "#8c8c8c"


def plot(medians: Medians, caption: str, file: Path) -> None:
    """Requests a second at eight clients beside p50 at one, a row of panels for each network; the
    same file for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tinyvit", "svg.fonttype": "path", "font.size": 9})
    import matplotlib.pyplot as plt

    groups = [_rows(medians, network.name) for network in NETWORKS]
    heights = [len(group) + 1 for group in groups]
    figure, panels = plt.subplots(
        len(groups),
        2,
        figsize=(11, 0.3 * sum(heights) + 1),
        sharey="row",
        height_ratios=heights,
        squeeze=False,
    )
    figure.patch.set_facecolor("#fbfbf8")
    for network, group, (left, right) in zip(NETWORKS, groups, panels, strict=True):
        names = [f"{row.server} · {row.engine} · {row.way}" for row in group]
        colours = [_colour(row) for row in group]
        _bars(left, names, [medians[row]["rate_8"] for row in group], colours, "{:.0f}")
        _bars(right, names, [medians[row].get("p50_ms_1", 0) for row in group], colours, "{:.1f}")
        rate, wait = "requests a second, 8 clients", "median milliseconds, 1 client"
        left.set_title(f"{network.name}: {rate}\n(more is better)", fontsize=9, loc="left")
        right.set_title(f"{wait}\n(less is better)", fontsize=9, loc="left")
        left.invert_yaxis()
    figure.text(0.01, 0.005, caption, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _rows(medians: Medians, network: str) -> list[Row]:
    return [
        row for row, figures in medians.items() if row.network == network and "rate_8" in figures
    ]


def _colour(row: Row) -> str:
    return COLOURS.get((row.server, row.engine), PEER if row.engine == OPENVINO else TORCH)


def _bars(panel: Any, names: list[str], values: list[float], colours: list[str], form: str) -> None:
    bars = panel.barh(names, values, color=colours)
    panel.bar_label(bars, [form.format(v) if v else "" for v in values], padding=3, fontsize=8)
    panel.set_facecolor("#fbfbf8")
    panel.set_xlim(0, 1.15 * max(values, default=1) or 1)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.tick_params(bottom=False, labelbottom=False, left=False)
