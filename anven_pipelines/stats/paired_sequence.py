"""Confidence sequence for the mean difference of two outcomes in [0, 1] that are both known of each observation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import Bounds, ConfidenceSequence, checked_values

if TYPE_CHECKING:
    import numpy.typing as npt

V_OPT: Final = 5.0
"""Sum of squares at which it is tightest: some hundred pairs of which few differ. Another one costs width only."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference(ConfidenceSequence):
    """Empirical Bernstein confidence sequence for a mean of differences in [-1, 1].

    Each difference needs the mean in question given all before it; how the two outcomes of one pair depend on each
    other is free. Where the mean moves, `current` covers the average of the means so far. A pair may lie no more than
    1 beyond what is predicted for it on the side of a bound, so what is predicted for the upper one is never below 0,
    and for the lower one never above.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, theorem 4 with the
        gamma-exponential mixture, and with the range on the one side that its proof needs.
    """

    total: float = 0.0
    squares_above: float = 0.0  # of each difference less what is predicted for the upper bound
    squares_below: float = 0.0  # the same for the lower one

    def update(self, differences: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            differences: In [-1, 1], shape (k,), in the order of arrival; k may be 0.

        Raises:
            ValueError: a difference is NaN or outside [-1, 1], or the shape is not (k,).
        """
        x = checked_values(differences, low=-1, high=1)
        if not x.size:
            return self
        totals = self.total + np.cumsum(x)
        before = (totals - x) / np.maximum(self.n + np.arange(x.size), 1)
        return replace(
            self,
            n=self.n + x.size,
            total=float(totals[-1]),
            squares_above=self.squares_above + float(((x - np.maximum(before, 0.0)) ** 2).sum()),
            squares_below=self.squares_below + float(((x - np.minimum(before, 0.0)) ** 2).sum()),
        ).looked()

    @property
    def estimate(self) -> float:
        """Mean difference."""
        return self.total / self.n

    def bounds(self) -> Bounds:
        """Bounds at this look, within [-1, 1]."""
        if not self.n:
            return Bounds(-1.0, 1.0)
        below, above = (
            gamma_exponential_bound(squares, alpha=(1 - self.level) / 2, v_opt=V_OPT, scale=1) / self.n
            for squares in (self.squares_below, self.squares_above)
        )
        return Bounds(max(self.estimate - below, -1.0), min(self.estimate + above, 1.0))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "empirical Bernstein confidence sequence of paired differences"
