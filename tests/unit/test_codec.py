"""The best labels, against a whole sort."""

import numpy as np
from hypothesis import given, strategies as st

from mlserver_timm.protocol.response import PARTITION_THRESHOLD, top


@st.composite
def asked(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Scores `[N,classes]`, many of them equal, and how many are wanted."""
    classes = draw(st.integers(1, 3 * PARTITION_THRESHOLD))
    row = st.lists(
        st.sampled_from([0.0, 1e-40, 0.25, 0.5, 1.0]), min_size=classes, max_size=classes
    )
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return np.array(rows, np.float32), draw(st.integers(1, classes))


@given(asked())
def test_top(drawn: tuple[np.ndarray, int]) -> None:
    """Best first; of equals the first."""
    scores, k = drawn
    before = scores.copy()
    np.testing.assert_array_equal(top(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(scores, before)
