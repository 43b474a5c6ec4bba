"""Confidence sequences for one stream: a mean of scores in [0, 1], or a proportion.

They may be looked at after every batch, for ever, and stopped at any look. They rest on observations that each have
the mean in question given all before: one observation per unit that was assigned (user or conversation), not several
that share its luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.boundaries import beta_binomial_evidence, beta_binomial_weight, gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import (
    N_OPT,
    TYPICAL_VARIANCE,
    Bounds,
    ConfidenceSequence,
    checked_values,
)
from anven_pipelines.stats.distributions import root_between

_BOLDEST_BET = 0.5
_NEAR_ZERO = 1e-12  # a share that counts as none


@dataclass(frozen=True, kw_only=True)
class BoundedMean(ConfidenceSequence):
    """Empirical Bernstein confidence sequence for a mean of scores in [0, 1], graded or not.

    Where the mean moves, `current` covers the average of the means so far.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, theorem 4, with the
        gamma-exponential mixture.
    """

    total: float = 0.0
    squares: float = 0.0  # of each score's distance from the mean before it
    n_opt: int = N_OPT

    def update(self, scores: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            scores: In [0, 1], shape (k,), in the order of arrival; k may be 0.

        Raises:
            ValueError: a score is NaN or outside [0, 1], or the shape is not (k,).
        """
        x = checked_values(scores, low=0, high=1)
        if not x.size:
            return self
        totals = self.total + np.cumsum(x)
        before = (0.5 + totals - x) / (self.n + np.arange(1, x.size + 1))
        squares = self.squares + float(((x - before) ** 2).sum())
        return replace(self, n=self.n + x.size, total=float(totals[-1]), squares=squares).looked()

    @property
    def estimate(self) -> float:
        """Mean of the scores."""
        return self.total / self.n

    def bounds(self) -> Bounds:
        """Bounds at this look, within [0, 1]."""
        if not self.n:
            return Bounds(0.0, 1.0)
        v_opt = self.n_opt * TYPICAL_VARIANCE
        reach = gamma_exponential_bound(self.squares, alpha=(1 - self.level) / 2, v_opt=v_opt, scale=1) / self.n
        return Bounds(max(self.estimate - reach, 0.0), min(self.estimate + reach, 1.0))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "empirical Bernstein confidence sequence"


@dataclass(frozen=True, kw_only=True)
class SteadyMean(ConfidenceSequence):
    """Confidence sequence for the one mean that all scores in [0, 1] share: the tightest for some hundred of them.

    Where the mean moves it covers an average in which early scores weigh more: use BoundedMean.

    Source:
        Waudby-Smith and Ramdas (2023), Journal of the Royal Statistical Society B 86:1, theorem 2 (the predictable
        plug-in), with bets cut at one half.
    """

    total: float = 0.0
    squares: float = 0.0  # of each score's distance from the mean up to it
    bets: float = 0.0
    bet_total: float = 0.0
    spent: float = 0.0

    def update(self, scores: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            scores: In [0, 1], shape (k,), in the order of arrival; k may be 0.

        Raises:
            ValueError: a score is NaN or outside [0, 1], or the shape is not (k,).
        """
        x = checked_values(scores, low=0, high=1)
        if not x.size:
            return self
        t = self.n + np.arange(1, x.size + 1)
        totals = self.total + np.cumsum(x)
        after = (0.5 + totals) / (t + 1)
        before = (0.5 + totals - x) / t
        squares = self.squares + np.cumsum((x - after) ** 2)
        variance_before = (0.25 + squares - (x - after) ** 2) / t
        bet = np.sqrt(2 * math.log(2 / (1 - self.level)) / (variance_before * t * np.log1p(t)))
        bet = np.minimum(bet, _BOLDEST_BET)
        spent = (x - before) ** 2 * (-np.log1p(-bet) - bet)
        return replace(
            self,
            n=int(t[-1]),
            total=float(totals[-1]),
            squares=float(squares[-1]),
            bets=self.bets + float(bet.sum()),
            bet_total=self.bet_total + float(bet @ x),
            spent=self.spent + float(spent.sum()),
        ).looked()

    @property
    def estimate(self) -> float:
        """Mean of the scores."""
        return self.total / self.n

    def bounds(self) -> Bounds:
        """Bounds at this look, within [0, 1]."""
        if not self.n:
            return Bounds(0.0, 1.0)
        centre = self.bet_total / self.bets
        reach = (math.log(2 / (1 - self.level)) + self.spent) / self.bets
        return Bounds(max(centre - reach, 0.0), min(centre + reach, 1.0))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "predictable plug-in confidence sequence"


@dataclass(frozen=True, kw_only=True)
class Proportion(ConfidenceSequence):
    """Beta-binomial confidence sequence for the one chance of success that all trials share.

    Where the chance moves use BoundedMean, which takes 0 and 1 too.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, section 3.2 (the two-sided
        beta-binomial mixture), inverted.
    """

    successes: int = 0
    n_opt: int = N_OPT

    def update(self, outcomes: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            outcomes: 0 or 1 (or booleans), shape (k,); k may be 0.

        Raises:
            ValueError: an outcome is neither 0 nor 1, or the shape is not (k,).
        """
        x = checked_values(outcomes, low=0, high=1)
        if not np.isin(x, (0, 1)).all():
            message = f"outcomes hold {x[~np.isin(x, (0, 1))][0]}; 0 or 1 is needed: use BoundedMean for graded scores"
            raise ValueError(message)
        return replace(self, n=self.n + x.size, successes=self.successes + int(x.sum())).looked() if x.size else self

    @property
    def estimate(self) -> float:
        """Share of successes."""
        return self.successes / self.n

    def bounds(self) -> Bounds:
        """Bounds at this look, within [0, 1]."""
        if not self.n:
            return Bounds(0.0, 1.0)
        failures = self.n - self.successes
        return Bounds(self._lowest_share(self.successes, failures), 1 - self._lowest_share(failures, self.successes))

    def _lowest_share(self, successes: int, failures: int) -> float:
        alpha = 1 - self.level
        weight = beta_binomial_weight(self.n_opt, alpha)

        def excess(share: float) -> float:
            return float(beta_binomial_evidence(successes, failures, share=share, weight=weight)) + math.log(alpha)

        if not successes or excess(_NEAR_ZERO) <= 0:
            return 0.0
        return root_between(excess, _NEAR_ZERO, min(successes / self.n, 1 - _NEAR_ZERO))

    @property
    def method(self) -> str:
        """The method, for a report."""
        return "beta-binomial confidence sequence"
