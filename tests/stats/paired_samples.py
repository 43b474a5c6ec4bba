"""Paired samples that several tests need: the counts of real models, and every kind that hypothesis can draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from anven_pipelines.stats.pairs import MIN_CLUSTERS, MIN_PAIRS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def table(*, both: int, gained: int, lost: int, n: int) -> tuple[FloatArray, FloatArray]:
    """Target and legacy scores with the given counts."""
    cells = [both, gained, lost, n - both - gained - lost]
    return np.repeat([1.0, 1.0, 0.0, 0.0], cells), np.repeat([1.0, 0.0, 1.0, 0.0], cells)


GSM = table(both=1258 - 45, gained=29, lost=45, n=1319)  # recorded answers of two real models
GSM_SMALL = table(both=1258 - 165, gained=15, lost=165, n=1319)


@st.composite
def samples(draw: st.DrawFn) -> tuple[FloatArray, FloatArray, IntArray | None]:
    """Right or wrong, graded, clustered and degenerate samples."""
    n = draw(st.integers(MIN_PAIRS, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([1, 4, 1000]))
    legacy = np.minimum(rng.integers(0, steps + 1, n), draw(st.sampled_from([0, steps, steps]))) / steps
    changed = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    target = np.where(changed, rng.integers(0, steps + 1, n) / steps, legacy)
    clusters = np.arange(n) // draw(st.integers(1, n // MIN_CLUSTERS)) if draw(st.booleans()) else None
    return target, legacy, clusters
