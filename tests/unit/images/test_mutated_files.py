"""Mutated files become pixels or an InvalidImage, nothing else."""

import random

import pytest
from hypothesis import given

from tests.support.fuzz_targets import decode_file
from tests.support.mutations import files, mutate, seeds


@pytest.mark.parametrize("original", [pytest.param(f, id=str(i)) for i, f in enumerate(files())])
@given(seeds)
def test_mutated_files(original: bytes, seed: int) -> None:
    decode_file(mutate(original, random.Random(seed)))
