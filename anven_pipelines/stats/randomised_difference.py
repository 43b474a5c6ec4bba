"""Confidence sequences for the difference of two arms that run side by side under random assignment.

Every observation is weighed by the chance it had of its arm, so that the share may change at any time and a drift that
meets both arms alike (a busier hour, a harder mix of questions) cannot pass for a difference. Two means taken apart
would be compared over different hours once the share has changed.

The chance must be known before, and each observation be assigned anew: where assignment sticks to a user or a
conversation, that unit is one observation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.asymptotic_sequence import AsymptoticSequence
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import (
    N_OPT,
    TYPICAL_VARIANCE,
    Bounds,
    ConfidenceSequence,
    FloatArray,
    checked_values,
)


class Effects(NamedTuple):
    """One unbiased effect per observation, what was predicted for each before it, and the arms after the batch."""

    effects: FloatArray
    predicted: FloatArray
    arms: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arms(ConfidenceSequence):
    """Counts and sums of both arms; their means predict the next outcome."""

    treated_n: int = 0
    treated_total: float = 0.0
    control_n: int = 0
    control_total: float = 0.0

    def effects_of(self, outcomes: FloatArray, treated: npt.ArrayLike, *, share: float, default: float) -> Effects:
        """Weigh each outcome, less its prediction, by the chance of its arm.

        Args:
            outcomes: Finite, shape (k,), in the order of arrival.
            treated: Whether each was assigned to the treated arm, booleans, shape (k,).
            share: Chance of the treated arm.
            default: What an arm without outcomes is predicted to give.

        Returns:
            Effects in the unit of the outcomes, shape (k,): each has the true effect as its mean, given all before.

        Raises:
            ValueError: `treated` is not boolean or of another shape, or `share` leaves one arm empty.
        """
        chosen = np.asarray(treated)
        if chosen.dtype != np.bool_ or chosen.shape != outcomes.shape:
            message = f"treated has shape {chosen.shape}, type {chosen.dtype}; {outcomes.shape} booleans are needed"
            raise ValueError(message)
        if not 0 < share < 1:
            message = f"share is {share}; between 0 and 1 is needed: one arm alone has nothing to compare with"
            raise ValueError(message)
        treated_before = _means_before(outcomes, chosen, self.treated_n, self.treated_total, default)
        control_before = _means_before(outcomes, ~chosen, self.control_n, self.control_total, default)
        predicted = treated_before - control_before
        surprise = outcomes - np.where(chosen, treated_before, control_before)
        arms = {
            "treated_n": self.treated_n + int(chosen.sum()),
            "treated_total": self.treated_total + float(outcomes[chosen].sum()),
            "control_n": self.control_n + int((~chosen).sum()),
            "control_total": self.control_total + float(outcomes[~chosen].sum()),
        }
        return Effects(predicted + surprise * np.where(chosen, 1 / share, -1 / (1 - share)), predicted, arms)


@dataclass(frozen=True, kw_only=True)
class RandomisedDifference(Arms):
    """Confidence sequence for the mean of treated - control of outcomes in [0, 1], whatever their distribution.

    `current` covers the average effect over all observations so far even while it moves. `smallest_share` is the
    smallest chance that either arm will ever have, fixed before the first observation: an arm's surprise weighs at
    most 1 / smallest_share. That is the scale of the boundary; the paper takes twice as much.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, section 4.2 (corollary 2), and
        theorem 4 with the range on one side only, as its proof needs it.
    """

    smallest_share: float
    total: float = 0.0  # of effects
    squares: float = 0.0  # of effects less their predictions
    n_opt: int = N_OPT

    def __post_init__(self) -> None:
        """Refuse a share that neither arm can have."""
        super().__post_init__()
        if not 0 < self.smallest_share <= 0.5:  # noqa: PLR2004 - one of two arms
            message = f"smallest_share is {self.smallest_share}; the smaller arm's share, above 0 up to 0.5, is needed"
            raise ValueError(message)

    def update(self, outcomes: npt.ArrayLike, treated: npt.ArrayLike, *, share: float) -> Self:
        """Return the state after one batch.

        Args:
            outcomes: In [0, 1], shape (k,), in the order of arrival; k may be 0.
            treated: Whether each was assigned to the treated arm (intention to treat), booleans, shape (k,).
            share: Chance of the treated arm while the batch was assigned; split a batch where it changed.

        Raises:
            ValueError: an outcome is NaN or outside [0, 1], shapes disagree, or `share` leaves an arm less than
                `smallest_share`.
        """
        x = checked_values(outcomes, low=0, high=1)
        if min(share, 1 - share) < self.smallest_share * (1 - 1e-9):
            message = (
                f"share is {share}; {self.smallest_share:g} to {1 - self.smallest_share:g} is needed: begin a new "
                "sequence with a smaller smallest_share"
            )
            raise ValueError(message)
        found = self.effects_of(x, treated, share=share, default=0.5)
        if not x.size:
            return self
        total = self.total + float(found.effects.sum())
        squares = self.squares + float(((found.effects - found.predicted) ** 2).sum())
        return replace(self, n=self.n + x.size, total=total, squares=squares, **found.arms).looked()

    @property
    def estimate(self) -> float:
        """Mean effect."""
        return self.total / self.n

    def bounds(self) -> Bounds:
        """Bounds at this look, within [-1, 1]."""
        if not self.n:
            return Bounds(-1.0, 1.0)
        v_opt = self.n_opt * TYPICAL_VARIANCE / (self.smallest_share * (1 - self.smallest_share))
        alpha = (1 - self.level) / 2
        reach = gamma_exponential_bound(self.squares, alpha=alpha, v_opt=v_opt, scale=1 / self.smallest_share) / self.n
        # Far ahead of the data an estimate may lie outside [-1, 1], and its bounds must not cross.
        return Bounds(min(max(self.estimate - reach, -1.0), 1.0), max(min(self.estimate + reach, 1.0), -1.0))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "empirical Bernstein confidence sequence of a randomised difference"


@dataclass(frozen=True, kw_only=True)
class AsymptoticDifference(Arms, AsymptoticSequence):
    """Asymptotic confidence sequence for the mean of treated - control of any values, such as a cost in USD.

    Source:
        Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Annals of Statistics 52:2613, section 3.1.
    """

    def update(self, outcomes: npt.ArrayLike, treated: npt.ArrayLike, *, share: float) -> Self:
        """Return the state after one batch.

        Args:
            outcomes: Finite, in any one unit, shape (k,), in the order of arrival; k may be 0.
            treated: Whether each was assigned to the treated arm (intention to treat), booleans, shape (k,).
            share: Chance of the treated arm while the batch was assigned, between 0 and 1.

        Raises:
            ValueError: an outcome is NaN or infinite, shapes disagree, or `share` leaves one arm empty.
        """
        x = checked_values(outcomes)
        found = self.effects_of(x, treated, share=share, default=0.0)
        return replace(self._after(found.effects), **found.arms).looked() if x.size else self


def _means_before(
    outcomes: FloatArray, chosen: npt.NDArray[np.bool_], n: int, total: float, default: float
) -> FloatArray:
    """Mean of an arm's outcomes before each observation; `default` before its first."""
    counts = n + np.cumsum(chosen) - chosen
    totals = total + np.cumsum(np.where(chosen, outcomes, 0.0)) - np.where(chosen, outcomes, 0.0)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), default)
    return np.asarray(means)
