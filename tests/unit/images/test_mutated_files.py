"""Mutated files become pixels or an InvalidImage, nothing else."""

import io
import random

import numpy as np
import pytest
from hypothesis import given

from mlserver_timm.images.decode import InvalidImage, open_file
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.clients import assert_sentence
from tests.support.mutations import files, mutate, seeds

TRANSFORM = EvaluationTransform((64, 64), "bicubic", 0.95, "center", (124, 116, 104))


@pytest.mark.parametrize("original", [pytest.param(f, id=str(i)) for i, f in enumerate(files())])
@given(seeds)
def test_mutated_files(original: bytes, seed: int) -> None:
    try:
        pixels = TRANSFORM(open_file(io.BytesIO(mutate(original, random.Random(seed)))))
    except InvalidImage as error:
        assert_sentence(str(error))
    except MemoryError:  # a huge size in the header: a decoder process turns this into a refusal
        pass
    else:
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
