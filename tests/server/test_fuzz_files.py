"""Mutated files are answered or refused with a sentence."""

import random

import pytest
from hypothesis import given, settings

from tests.support.app import App
from tests.support.clients import assert_sane, classify
from tests.support.mutations import QUIET, assert_answered, files, mutate, seeds


@pytest.mark.slow
@pytest.mark.parametrize("original", [pytest.param(f, id=str(i)) for i, f in enumerate(files())])
def test_mutated_file(app: App, original: bytes) -> None:
    @settings(QUIET, max_examples=60)
    @given(seeds)
    def check(seed: int) -> None:
        assert_answered(classify(app, mutate(original, random.Random(seed))))

    check()
    assert_sane(app)
