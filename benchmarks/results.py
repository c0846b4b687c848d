"""What is measured: of which network, which server and engine, asked in which way."""

from collections import defaultdict
from dataclasses import astuple, dataclass, replace
from typing import Any

BARE = "Engine alone, no server"
ALONE, WITH_PICTURE = "pixels, in each infer request", "JPEG decoded and resized"


@dataclass(frozen=True)
class Row:
    """A line of the table; without `way`, a server as a whole."""

    network: str
    server: str
    engine: str
    way: str = ""

    def asked(self, way: str) -> "Row":
        """The same server, asked in this way."""
        return replace(self, way=way)

    def __str__(self) -> str:
        return ", ".join(part for part in astuple(self) if part)


Results = dict[Row, dict[str, list[float]]]
"""By row, then by figure: one a round."""


def no_results() -> Results:
    """Where everything is an empty list until something is appended."""
    return defaultdict(lambda: defaultdict(list))


def dump(results: Results) -> list[Any]:
    """For JSON."""
    return [[list(astuple(row)), dict(figures)] for row, figures in results.items()]


def load(content: list[Any]) -> Results:
    """What `dump` made."""
    results = no_results()
    for row, figures in content:
        results[Row(*row)].update(figures)
    return results
