"""What is measured: a network, a server with its engine, and a workload."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

BARE = "Engine alone, no server"
PIXELS, WITH_DECODING = "pixels, in each infer request", "JPEG decoded and resized"


@dataclass(frozen=True)
class Row:
    """A line of the table; without `workload`, a server as a whole."""

    network: str
    server: str
    engine: str
    workload: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in astuple(self) if part)


Results = Mapping[Row, Mapping[str, list[float]]]
"""By row, then by figure: one value per round."""

Medians = Mapping[Row, Mapping[str, float]]
