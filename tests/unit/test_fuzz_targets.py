"""The fuzz targets pass on their seeds and on all earlier finds."""

import random
import sys

import pytest
from hypothesis import given

from tests.support.paths import ROOT

FUZZ = ROOT / "tests" / "fuzz"
sys.path.append(str(FUZZ))

from tests.support.fuzz_targets import TARGETS, bodies, read_body  # noqa: E402
from tests.support.mutations import mutate, seeds  # noqa: E402


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_finds(name: str) -> None:
    target, seeds = TARGETS[name]
    finds = [path.read_bytes() for path in (FUZZ / "finds").glob(f"{name}/*")]
    for data in (*seeds(), *finds):
        target(data)


@pytest.mark.parametrize("body", [pytest.param(b, id=str(i)) for i, b in enumerate(bodies())])
@given(seeds)
def test_mutated_bodies(body: bytes, seed: int) -> None:
    """The kind of the body and the length of its JSON stay."""
    read_body(body[:3] + mutate(body[3:], random.Random(seed)))


def test_the_seeds_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """With refused seeds, fuzzing would only reach the first check."""

    def refused(sentence: str) -> None:
        raise AssertionError(sentence)

    monkeypatch.setattr("tests.support.fuzz_targets.assert_sentence", refused)
    for body in bodies():
        read_body(body)
