"""Asymptotic confidence sequences: for values that have no range."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.boundaries import normal_mixture_bound
from anven_pipelines.stats.confidence_sequence import N_OPT, Bounds, ConfidenceSequence, FloatArray, checked_values

if TYPE_CHECKING:
    import numpy.typing as npt

MIN_ASYMPTOTIC = 500  # below, the limit is not there yet for skewed values (tests/stats/test_asymptotic_sequence.py)


@dataclass(frozen=True, kw_only=True)
class AsymptoticSequence(ConfidenceSequence):
    """Asymptotic confidence sequence for a mean, from the mean and the squares alone.

    It needs a finite variance and no range, and holds in the limit of a late first look: there are no bounds before
    MIN_ASYMPTOTIC observations.

    Source:
        Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Annals of Statistics 52:2613, theorem 2.2.
    """

    mean: float = 0.0
    squares: float = 0.0  # of distances from the mean
    n_opt: int = N_OPT

    def _after(self, values: FloatArray) -> Self:
        """Return the state after one batch that is not empty, before its look (Chan, Golub and LeVeque 1983)."""
        n, step = self.n + values.size, float(values.mean()) - self.mean
        within = float(((values - values.mean()) ** 2).sum())
        squares = self.squares + within + step**2 * self.n * values.size / n
        return replace(self, n=n, mean=self.mean + step * values.size / n, squares=squares)

    @property
    def estimate(self) -> float:
        """Mean of the values."""
        return self.mean

    def bounds(self) -> Bounds:
        """Bounds at this look, in the unit of the values.

        Raises:
            TooFewPairs: fewer than MIN_ASYMPTOTIC values, or all are equal.
        """
        if self.n < MIN_ASYMPTOTIC or not self.squares:
            found = f"{self.n} values" if self.squares else f"{self.n} values, all equal"
            message = (
                f"{found}; at least {MIN_ASYMPTOTIC}, not all equal, are needed for asymptotic bounds: wait for traffic"
            )
            raise TooFewPairs(message)
        deviation = math.sqrt(self.squares / self.n)
        reach = deviation * normal_mixture_bound(self.n, alpha=1 - self.level, v_opt=self.n_opt) / self.n
        return Bounds(self.mean - reach, self.mean + reach)

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "asymptotic confidence sequence"


@dataclass(frozen=True, kw_only=True)
class AsymptoticMean(AsymptoticSequence):
    """Asymptotic confidence sequence for the mean of any values, such as a cost in USD."""

    def update(self, values: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            values: Finite, in any one unit, shape (k,); k may be 0.

        Raises:
            ValueError: a value is NaN or infinite, or the shape is not (k,).
        """
        x = checked_values(values)
        return self._after(x).looked() if x.size else self
