"""Curves that a sum of deviations crosses, at any time at all, no more often than a given rate.

Each takes its intrinsic time: a sum of variances or of squares. Where a boundary is tuned (`v_opt`, `n_opt`) only its
tightness depends on it, not its error rate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.distributions import FloatArray, log_beta, log_gamma, lower_gamma_share, root_between

_PRIOR_FLOOR = 1e-3  # the smallest prior weight, in trials, where the tuning asks for none


class Counts(NamedTuple):
    """The fewest and the most successes that contradict nothing."""

    fewest: int
    most: int


def normal_mixture_bound(v: float, *, alpha: float, v_opt: float) -> float:
    """Two-sided boundary for a sub-Gaussian sum.

    Args:
        v: Intrinsic time (sum of variances), from 0 up.
        alpha: Chance to cross it on either side, ever.
        v_opt: Intrinsic time at which it is tightest.

    Returns:
        The boundary, in the unit of the sum.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, sections 3.2 (the
        two-sided normal mixture) and 3.5 (its tuning).
    """
    _check(alpha, v=v, v_opt=v_opt)
    rho = v_opt / _tuning(alpha)
    return math.sqrt((v + rho) * (math.log1p(v / rho) - 2 * math.log(alpha)))


def gamma_exponential_bound(v: float, *, alpha: float, v_opt: float, scale: float) -> float:
    """One-sided boundary for a sub-exponential sum, which empirical Bernstein bounds rest on.

    Args:
        v: Intrinsic time (sum of squared deviations from what was predicted), from 0 up.
        alpha: Chance to cross it, ever; below one half.
        v_opt: Intrinsic time at which it is tightest.
        scale: How far below its prediction a term can fall.

    Returns:
        The boundary, in the unit of the sum.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Howard et al. (2021), section 3.2 (the gamma-exponential mixture) and theorem 4.
    """
    _check(alpha, v=v, v_opt=v_opt)
    if not (0 < scale < math.inf and alpha < 0.5):  # noqa: PLR2004 - one-sided
        message = f"scale is {scale}, alpha is {alpha}; a finite scale above 0 and an alpha below one half are needed"
        raise ValueError(message)
    prior = v_opt / _tuning(2 * alpha) / scale**2
    shape = v / scale**2 + prior
    constant = prior * math.log(prior) - log_gamma(prior) - math.log(lower_gamma_share(prior, prior))

    def excess(distance: float) -> float:
        at = distance / scale + shape
        log_mixture = log_gamma(shape) + math.log(lower_gamma_share(shape, at)) - shape * math.log(at) + at - prior
        return constant + log_mixture + math.log(alpha)

    far = scale + math.sqrt(v + v_opt)
    while excess(far) < 0:
        far *= 2
    return root_between(excess, 0.0, far)


def beta_binomial_weight(n_opt: float, alpha: float) -> float:
    """Return the prior weight, in trials, with which `beta_binomial_evidence` is tightest at n_opt trials.

    Source:
        Howard et al. (2021), section 3.5.
    """
    _check(alpha, v=0.0, v_opt=n_opt)
    return max(n_opt / _tuning(alpha) - 1, _PRIOR_FLOOR)


def beta_binomial_evidence(
    successes: npt.ArrayLike, failures: npt.ArrayLike, *, share: float, weight: float
) -> FloatArray:
    """Log evidence against a success rate of `share`: it ever exceeds log(1 / alpha) with a chance of alpha at most.

    Args:
        successes: Successes so far, any shape.
        failures: Trials less successes, the same shape.
        share: The success rate in question, in (0, 1).
        weight: Trials that the prior, centred on `share`, is worth.

    Returns:
        Natural logarithm of a martingale that begins at 1, the same shape.

    Source:
        Howard et al. (2021), section 3.2 (the two-sided beta-binomial mixture), with g = share and h = 1 - share.
    """
    won, lost = np.asarray(successes, dtype=np.float64), np.asarray(failures, dtype=np.float64)
    prior = np.asarray(weight * share), np.asarray(weight * (1 - share))
    mixture = log_beta(prior[0] + won, prior[1] + lost) - log_beta(*prior)
    return np.asarray(mixture - won * math.log(share) - lost * math.log1p(-share))


def plausible_counts(n: int, *, share: float, alpha: float, weight: float) -> Counts:
    """Counts of successes in n trials that do not contradict a success rate of `share` at any look so far.

    Args:
        n: Trials, from 0 up.
        share: The success rate, in (0, 1).
        alpha: Chance that the count ever leaves the range.
        weight: See `beta_binomial_evidence`.

    Returns:
        The smallest and largest such count, within 0 to n.
    """

    def excess(successes: float) -> float:
        return float(beta_binomial_evidence(successes, n - successes, share=share, weight=weight)) + math.log(alpha)

    centre = n * share
    fewest = 0 if excess(0) <= 0 else math.ceil(root_between(excess, 0, centre))
    most = n if excess(n) <= 0 else math.floor(root_between(excess, centre, n))
    return Counts(fewest, most)


def _tuning(alpha: float) -> float:
    """Ratio of the optimal intrinsic time to the parameter that is optimal there."""
    return -2 * math.log(alpha) + math.log1p(-2 * math.log(alpha))


def _check(alpha: float, *, v: float, v_opt: float) -> None:
    if not 0 < alpha < 1:
        message = f"alpha is {alpha}; an error rate between 0 and 1 is needed, e.g. 0.05"
        raise ValueError(message)
    if not (0 <= v < math.inf and 0 < v_opt < math.inf):
        message = f"intrinsic time is {v}, tuned for {v_opt}; a finite time and a finite one above 0 are needed"
        raise ValueError(message)
