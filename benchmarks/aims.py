"""What this runtime is to reach, in medians over the rounds, and whether it does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compared import (
    BASE64,
    BF16,
    BIG,
    BINARY,
    FP32,
    NUMPY,
    RAW,
    SAME_ENGINE,
    STRAIGHTFORWARD,
)
from inputs import SAMPLE, TINYVIT, Network
from results import ALONE, BARE, Row
from servers import Server, Way

Medians = Mapping[Row, Mapping[str, float]]


@dataclass(frozen=True)
class Aim:
    """One thing to reach: `measured` at least, or at most, `bound`; None where a server that it
    needs was not measured."""

    text: str
    measured: float | None
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        if self.measured is None:
            return f"{self.text} (aim {sign} {self.bound:g}): NOT MEASURED"
        verdict = "met" if self.met else "NOT MET"
        return f"{self.text}: {self.measured:.2f} (aim {sign} {self.bound:g}): {verdict}"


def aims(medians: Medians) -> list[Aim]:
    """On equal terms first, then against the straightforward runtime, then of one server alone."""
    figures = _Figures(medians)
    return [*figures.same_engine(), *figures.straightforward(), *figures.alone()]


class _Figures:
    def __init__(self, medians: Medians) -> None:
        self._medians = medians

    def same_engine(self) -> Iterator[Aim]:
        for network, eight, engine, one in ((TINYVIT, 1.0, 0.87, 1.4), (SAMPLE, 1.15, 0.70, 1.25)):
            name = f"{network.name}, fp32, {RAW.name}"
            rate = self._of(network, FP32, RAW, "rate_8")
            best = self._best_peer(network, "rate_8")
            yield Aim(f"{name}, 8 clients, × the best peer", _ratio(rate, best), eight)
            bare = self._bare(network, "fp32")
            yield Aim(f"{name}, 8 clients, × the engine alone", _ratio(rate, bare), engine)
            lone = self._of(network, FP32, RAW, "rate_1")
            best = self._best_peer(network, "rate_1")
            yield Aim(f"{name}, 1 client, × the best peer", _ratio(lone, best), one)
        slow, others = self._of(TINYVIT, FP32, RAW, "p99_ms_8"), self._peers(TINYVIT, "p99_ms_8")
        text = f"{TINYVIT.name}, fp32, p99 at 8 clients, × the shortest of a peer's"
        yield Aim(text, _ratio(slow, min(others, default=None)), 0.85, at_least=False)
        for network in (TINYVIT, SAMPLE):
            rate, bare = self._of(network, BF16, RAW, "rate_8"), self._bare(network, "bf16")
            text = f"{network.name}, bf16, {RAW.name}, 8 clients, × the engine alone"
            yield Aim(text, _ratio(rate, bare), 0.85)

    def straightforward(self) -> Iterator[Aim]:
        lab = self._of(TINYVIT, STRAIGHTFORWARD, NUMPY, "rate_8")
        lab_p50 = self._of(TINYVIT, STRAIGHTFORWARD, NUMPY, "p50_ms_1")
        for server, way, bound in (
            (FP32, BASE64, 3.5),
            (FP32, RAW, 3.5),
            (FP32, NUMPY, 2.5),
            (BF16, BASE64, 5.5),
            (BF16, RAW, 5.5),
        ):
            text = f"{server.engine}, {way.name}, 8 clients, × the straightforward runtime"
            yield Aim(text, _ratio(self._of(TINYVIT, server, way, "rate_8"), lab), bound)
        lone = self._of(TINYVIT, FP32, BASE64, "p50_ms_1")
        text = f"p50 of a lone request, {FP32.engine}, {BASE64.name}, × the straightforward runtime"
        yield Aim(text, _ratio(lone, lab_p50), 0.35, at_least=False)

    def alone(self) -> Iterator[Aim]:
        small, large = (self._of(TINYVIT, FP32, way, "p50_ms_1") for way in (RAW, BIG))
        yield Aim("12-megapixel JPEG, × the small one's p50", _ratio(large, small), 3, False)
        for network in (TINYVIT, SAMPLE):
            pixels, jpeg = (self._of(network, FP32, way, "rate_8") for way in (BINARY, RAW))
            text = f"{network.name}, {BINARY.name}, 8 clients, × {RAW.name}"
            yield Aim(text, _ratio(pixels, jpeg), 0.95)
        for network, seconds in ((TINYVIT, 10), (SAMPLE, 2)):
            ready = self._of(network, FP32, None, "ready_s")
            yield Aim(f"{network.name}, seconds to ready, warm cache", ready, seconds, False)
        held = self._of(TINYVIT, FP32, None, "memory_mib")
        yield Aim("GB resident, one process", _ratio(held, 1e9 / 2**20), 1.2, False)

    def _of(self, network: Network, server: Server, way: Way | None, figure: str) -> float | None:
        row = Row(network.name, server.name, server.engine, way.name if way else "")
        return self._medians.get(row, {}).get(figure)

    def _bare(self, network: Network, precision: str) -> float | None:
        row = Row(network.name, BARE, f"OpenVINO {precision}", ALONE)
        return self._medians.get(row, {}).get("rate_8")

    def _peers(self, network: Network, figure: str) -> list[float]:
        found = [self._of(network, peer, peer.ways[0], figure) for peer in SAME_ENGINE]
        return [value for value in found if value is not None]

    def _best_peer(self, network: Network, figure: str) -> float | None:
        return max(self._peers(network, figure), default=None)


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
