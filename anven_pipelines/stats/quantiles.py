"""Interval for the difference of a quantile between two arms, such as p95 latency."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.interval import Interval

FloatArray = npt.NDArray[np.float64]

MIN_TAIL = 5  # observations beyond the quantile; fewer leave the bootstrap nothing to vary
_BATCH = 200  # resamples at once: 1,319 pairs then take 4 MB an arm


def paired_quantile_difference(
    target: FloatArray,
    legacy: FloatArray,
    *,
    quantile: float,
    level: float,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Interval:
    """Confidence interval for quantile(target) - quantile(legacy), pairs resampled together.

    Args:
        target: One finite value per item, shape (n,), any unit.
        legacy: The same items in the same order.
        quantile: Which quantile, in (0, 1), e.g. 0.95.
        level: Two-sided coverage, e.g. 0.90.
        rng: Seeded by the caller, so that a verdict can be reproduced.
        resamples: Bootstrap samples, at least 100.

    Returns:
        Percentile interval in the unit of the values. It assumes independent items, is approximate, and its bounds
        are limited by the values seen: near MIN_TAIL it covers less than `level` (docs/statistics.md).

    Raises:
        TooFewPairs: fewer than MIN_TAIL observations are expected beyond the quantile.
        ValueError: shapes disagree, a value is not finite, or another argument is out of range.

    Source:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3.
    """
    target, legacy = np.asarray(target, dtype=np.float64), np.asarray(legacy, dtype=np.float64)
    _check(target, legacy, quantile=quantile, level=level, resamples=resamples)

    def difference(target: FloatArray, legacy: FloatArray, axis: int = -1) -> FloatArray:
        return np.asarray(np.quantile(target, quantile, axis=axis) - np.quantile(legacy, quantile, axis=axis))

    from scipy import stats  # noqa: PLC0415 - takes 0.5 s to import

    bounds = stats.bootstrap(
        (target, legacy),
        difference,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=_BATCH,
        confidence_level=level,
        method="percentile",
        rng=rng,
    ).confidence_interval
    estimate = float(difference(target, legacy))
    method = f"paired percentile bootstrap, {resamples} resamples"
    return Interval(estimate, min(float(bounds.low), estimate), max(float(bounds.high), estimate), level, method)


def unpaired_quantile_difference(
    target: FloatArray,
    legacy: FloatArray,
    *,
    quantile: float,
    level: float,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Interval:
    """Confidence interval for quantile(target) - quantile(legacy) of arms that saw different requests.

    The quantile of a bootstrap sample is a value of the sample at a rank that follows a beta distribution: the rank
    is drawn instead of the sample, so that a million requests take no longer than it takes to sort them.

    Args:
        target: Finite values, shape (n,), any unit.
        legacy: Finite values, shape (m,), the same unit.
        quantile: Which quantile, in (0, 1), e.g. 0.95.
        level: Two-sided coverage, e.g. 0.90.
        rng: Seeded by the caller, so that a verdict can be reproduced.
        resamples: Bootstrap samples, at least 100.

    Returns:
        Percentile interval in the unit of the values, with the limits of `paired_quantile_difference`.

    Raises:
        TooFewPairs: fewer than MIN_TAIL observations are expected beyond the quantile in an arm.
        ValueError: a value is not finite, or another argument is out of range.

    Source:
        Schultzberg and Ankargren (2022), arXiv:2202.10992, section 2: ranks instead of resamples.
    """
    arms = np.asarray(target, dtype=np.float64), np.asarray(legacy, dtype=np.float64)
    for arm in arms:
        _check(arm, arm, quantile=quantile, level=level, resamples=resamples, what="values in an arm")
    draws = np.subtract(*(_quantiles_of_resamples(np.sort(arm), quantile, rng, resamples) for arm in arms))
    estimate = float(np.quantile(arms[0], quantile) - np.quantile(arms[1], quantile))
    lower, upper = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    method = f"unpaired percentile bootstrap, {resamples} resamples"
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate), level, method)


def _quantiles_of_resamples(
    ordered: FloatArray, quantile: float, rng: np.random.Generator, resamples: int
) -> FloatArray:
    """Draw quantiles of bootstrap samples, interpolated between two neighbours as NumPy does."""
    n = ordered.size
    below = int(quantile * (n - 1))  # 0-based rank of the lower neighbour
    # Uniform draws by rank: the lower neighbour's is beta, the next one's a further minimum of what lies above it.
    first = rng.beta(below + 1, n - below, size=resamples)
    second = first + (1 - first) * rng.beta(1, n - below - 1, size=resamples)
    lower, upper = (ordered[np.minimum((n * place).astype(np.int64), n - 1)] for place in (first, second))
    return np.asarray(lower + (quantile * (n - 1) - below) * (upper - lower))


def _check(
    target: FloatArray, legacy: FloatArray, *, quantile: float, level: float, resamples: int, what: str = "pairs"
) -> None:
    if target.ndim != 1 or target.shape != legacy.shape:
        message = f"target has shape {target.shape}, legacy {legacy.shape}; the same items, shape (n,), are needed"
        raise ValueError(message)
    if not (np.isfinite(target).all() and np.isfinite(legacy).all()):
        message = "a value is NaN or infinite; leave out items that were not measured in both arms, and count them"
        raise ValueError(message)
    if not (0 < quantile < 1 and 0 < level < 1):
        message = f"quantile is {quantile}, level is {level}; both must lie between 0 and 1"
        raise ValueError(message)
    if resamples < 100:  # noqa: PLR2004 - said in the message
        message = f"{resamples} resamples; at least 100 are needed"
        raise ValueError(message)
    share = min(quantile, 1 - quantile)
    if target.size * share < MIN_TAIL - 1e-9:
        needed = int(np.ceil(MIN_TAIL / share - 1e-9))
        message = (
            f"{target.size} {what} for the {quantile:g} quantile; at least {needed} are needed: measure more items"
        )
        raise TooFewPairs(message)
