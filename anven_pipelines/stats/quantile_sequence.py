"""Confidence sequence for a quantile of values from 0 up, such as p95 latency, on a histogram of fixed precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.boundaries import beta_binomial_weight, plausible_counts
from anven_pipelines.stats.confidence_sequence import N_OPT, Bounds, ConfidenceSequence, FloatArray, checked_values

IntArray = npt.NDArray[np.int64]

PRECISION = 0.005  # relative width of a bin: bounds are at most so much wider than those of the sorted values
SMALLEST = 1e-6  # values below share the first bin, which begins at 0
_STEP = math.log1p(PRECISION)


@dataclass(frozen=True, kw_only=True)
class QuantileSequence(ConfidenceSequence):
    """Confidence sequence for one quantile of independent values with one distribution.

    Counts stand in bins of 0.5 %, so the state stays small however many values there were. Bounds are rounded
    outwards to edges of bins: they cover at least as often as those of the sorted values. The upper bound is infinite
    until the tail beyond the quantile is long enough. Where the distribution moves, begin anew.

    Source:
        Howard and Ramdas (2022), Bernoulli 28:1704, theorem 1 with the beta-binomial mixture.
    """

    quantile: float
    bins: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    n_opt: int = N_OPT

    def __post_init__(self) -> None:
        """Refuse what is no quantile."""
        super().__post_init__()
        if not 0 < self.quantile < 1:
            message = f"quantile is {self.quantile}; between 0 and 1 is needed, e.g. 0.95"
            raise ValueError(message)

    def update(self, values: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            values: From 0 up, finite, in any one unit, shape (k,); k may be 0.

        Raises:
            ValueError: a value is NaN, infinite or negative, or the shape is not (k,).
        """
        x = checked_values(values, low=0)
        if not x.size:
            return self
        bins, inverse = np.unique(np.concatenate([np.array(self.bins, dtype=np.int64), _bins(x)]), return_inverse=True)
        added = np.concatenate([np.array(self.counts, dtype=np.int64), np.ones(x.size, dtype=np.int64)])
        counts = np.zeros(bins.size, dtype=np.int64)
        np.add.at(counts, inverse, added)
        state = replace(self, n=self.n + x.size, bins=tuple(bins.tolist()), counts=tuple(counts.tolist()))
        return state.looked()

    @property
    def estimate(self) -> float:
        """The quantile, to the upper edge of its bin."""
        return self._at(max(math.ceil(self.n * self.quantile), 1)).upper

    def bounds(self) -> Bounds:
        """Bounds at this look, in the unit of the values; the lower one is 0 and the upper infinite where open."""
        if not self.n:
            return Bounds(0.0, math.inf)
        alpha = 1 - self.level
        plausible = plausible_counts(
            self.n, share=self.quantile, alpha=alpha, weight=beta_binomial_weight(self.n_opt, alpha)
        )
        lower = self._at(plausible.fewest).lower if plausible.fewest else 0.0
        return Bounds(lower, self._at(plausible.most + 1).upper if plausible.most < self.n else math.inf)

    def _at(self, rank: int) -> Bounds:
        """Edges of the bin that holds the value of that rank, 1 being the smallest."""
        held = self.bins[int(np.searchsorted(np.cumsum(self.counts), rank))]
        return Bounds(0.0 if held == 0 else SMALLEST * math.exp((held - 1) * _STEP), SMALLEST * math.exp(held * _STEP))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return f"confidence sequence of the {self.quantile:g} quantile"


def _bins(values: FloatArray) -> IntArray:
    """Number of each value's bin: bin k > 0 holds what is above edge k - 1 and up to edge k."""
    scaled = np.log(np.maximum(values, SMALLEST) / SMALLEST) / _STEP
    return np.maximum(np.ceil(scaled), 0).astype(np.int64)
