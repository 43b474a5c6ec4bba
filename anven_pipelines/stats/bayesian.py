"""Interval of a paired difference for samples too small for the central limit theorem."""

from __future__ import annotations

import functools
import math

import numpy as np

from anven_pipelines.stats.distributions import beta_cdf, beta_density, root_between
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.pairs import FloatArray, pair_up

# A flat prior of the table; Jeffreys' (0.5) has the lower worst coverage from 20 items on: benchmarks/estimators.py.
PRIOR = 1.0
_NODES = 200


def credible_difference(target: FloatArray, legacy: FloatArray, *, level: float) -> Interval:
    """Equal-tailed credible interval for mean(target - legacy) of right-or-wrong scores on independent items.

    The four kinds of pair (both right, gained, lost, both wrong) have Dirichlet-distributed shares, a priori with
    PRIOR in each cell. The share of discordant pairs and the part of them that is gained are then independent beta
    variables, so that the posterior of gained - lost is one integral: no draw is made.

    Args:
        target: Scores 0 or 1, shape (n,), one per item.
        legacy: Scores 0 or 1, shape (n,), the same items in the same order.
        level: Two-sided credibility, e.g. 0.95.

    Returns:
        Interval in score points, within (-1, 1); the estimate is the observed difference, drawn into the interval
        where the prior moves that beyond it.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs.
        ValueError: shapes disagree, a score is not 0 or 1, or `level` is no coverage.

    Source:
        Bowyer, Aitchison and Ivanova (2025), arXiv:2503.01747, section 3 (Bayesian intervals for small samples); the
        Dirichlet posterior of a paired table: Altham (1971), Biometrika 58:679.
    """
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
    counts = pair_up(target, legacy, clusters=None).counts
    if counts is None:
        message = "a score lies between 0 and 1; right-or-wrong scores, 0 or 1, are needed for a table of pairs"
        raise ValueError(message)
    return interval_of_table(counts.gained, counts.lost, np.size(target), level=level)


def interval_of_table(gained: int, lost: int, n: int, *, level: float) -> Interval:
    """Bound the difference given the discordant pairs of a table; see `credible_difference`."""
    tail, estimate = (1 - level) / 2, (gained - lost) / n
    lower = root_between(lambda difference: posterior_below(difference, gained, lost, n) - tail, -1.0, 1.0)
    upper = root_between(lambda difference: posterior_below(difference, gained, lost, n) - 1 + tail, -1.0, 1.0)
    method = "credible interval of a paired table, flat prior"
    return Interval(estimate, min(lower, estimate), max(upper, estimate), level, method)


def posterior_below(difference: float, gained: int, lost: int, n: int) -> float:
    """Return the posterior probability that the share gained less the share lost is at most `difference`."""
    if difference < 0:
        return 1 - posterior_below(-difference, lost, gained, n)
    a, b = gained + lost + 2 * PRIOR, n - gained - lost + 2 * PRIOR
    # A share of discordant pairs below the difference cannot exceed it; above, integrate over that share.
    angles, weights = _quadrature()
    share = difference + (1 - difference) * np.sin(angles) ** 2
    steps = weights * (1 - difference) * np.sin(2 * angles)
    split = np.minimum((1 + difference / share) / 2, 1)
    above = steps @ (beta_density(share, a, b) * beta_cdf(split, gained + PRIOR, lost + PRIOR))
    return float(beta_cdf(np.array(difference), a, b) + above)


@functools.cache
def _quadrature() -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre nodes and weights on (0, pi / 2): in the angle, square-root ends of the integrand are smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) * math.pi / 4, weights * math.pi / 4
