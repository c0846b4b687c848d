"""Mutated files make pixels or an InvalidImage, nothing else."""

import io
import random

import numpy as np
from hypothesis import given, settings, strategies as st

from mlserver_timm.images.decode import InvalidImage, open_file
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.clients import assert_sentence
from tests.support.mutations import QUIET, files, mutate, seeds


def test_mutated_files_without_a_server() -> None:
    """The same, many more, where a picture becomes pixels."""
    preprocess = EvaluationTransform((64, 64), "bicubic", 0.95, "center", (124, 116, 104))
    originals = files()

    @settings(QUIET, max_examples=3000)
    @given(st.sampled_from(originals), seeds)
    def check(original: bytes, seed: int) -> None:
        try:
            data = mutate(original, random.Random(seed))
            pixels = preprocess(open_file(io.BytesIO(data)))
        except InvalidImage as error:
            assert_sentence(str(error))
        else:
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8

    check()
