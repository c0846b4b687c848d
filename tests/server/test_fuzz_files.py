"""Mutated image files are answered or refused with one sentence."""

import random

from hypothesis import given, strategies as st

from tests.support.app import App
from tests.support.clients import classify
from tests.support.mutations import assert_answered, files, mutate, seeds


@given(st.sampled_from(files()), seeds)
def test_mutated_files(app: App, original: bytes, seed: int) -> None:
    assert_answered(classify(app, mutate(original, random.Random(seed))))
