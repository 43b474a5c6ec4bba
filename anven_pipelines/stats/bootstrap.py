"""Bootstrap intervals of two arms on the same items: clusters are drawn whole, bounds are corrected for skew (BCa)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import normal_quantile, normal_tail
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.pairs import FloatArray, Labels, pair_up

MIN_RESAMPLES = 1000  # the 2.5 % quantile of fewer rests on a handful of draws
_BATCH = 50_000  # clusters drawn at once: what is picked stays in the processor's cache


def bootstrap_difference(
    target: FloatArray,
    legacy: FloatArray,
    *,
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Interval:
    """Bootstrap interval for the weighted mean of target - legacy.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: How many items of the workload each item stands for, above 0, shape (n,), any scale; None if equal.
        level: Two-sided coverage, e.g. 0.95.
        rng: Seeded by the caller, so that a verdict can be reproduced.
        resamples: Bootstrap samples, at least MIN_RESAMPLES.

    Returns:
        Interval in score points. With few clusters it covers less than `level` (docs/statistics.md). It describes, as
        `paired.difference_interval` does, which takes clusters and weights too; `paired.noninferiority` decides.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters, or clusters that are all alike.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], or another argument is out of range.

    Source:
        Efron (1987), Journal of the American Statistical Association 82:171; clusters: Davison and Hinkley (1997),
        Bootstrap Methods and their Application, section 3.8.
    """
    pairs = pair_up(target, legacy, clusters, weights)
    return _bca(pairs.target - pairs.legacy, pairs.sizes, level=level, rng=rng, resamples=resamples)


def bootstrap_ratio(
    target: FloatArray,
    legacy: FloatArray,
    *,
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Interval:
    """Bootstrap interval for the ratio of the weighted means, target / legacy.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: How many items of the workload each item stands for, above 0, shape (n,), any scale; None if equal.
        level: Two-sided coverage, e.g. 0.90 beside a one-sided decision at 0.05.
        rng: Seeded by the caller, so that a verdict can be reproduced.
        resamples: Bootstrap samples, at least MIN_RESAMPLES.

    Returns:
        Interval without unit; what is said of `bootstrap_difference` holds here too.

    Raises:
        TooFewPairs: as `bootstrap_difference`, or the legacy scores in so few clusters that some draws have none.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], or another argument is out of range.

    Source:
        As `bootstrap_difference`.
    """
    pairs = pair_up(target, legacy, clusters, weights)
    return _bca(pairs.target, pairs.legacy, level=level, rng=rng, resamples=resamples)


def _bca(
    numerator: FloatArray, denominator: FloatArray, *, level: float, rng: np.random.Generator, resamples: int
) -> Interval:
    """Bound the ratio of two totals, whose cluster sums have shape (clusters,)."""
    if not 0 < level < 1 or resamples < MIN_RESAMPLES:
        message = f"level is {level} with {resamples} resamples; a coverage between 0 and 1 and at least"
        message += f" {MIN_RESAMPLES} resamples are needed"
        raise ValueError(message)
    drawn = _drawn_totals(numerator, denominator, rng, resamples)
    if drawn.imag.min() <= 0:
        message = f"{int((drawn.imag <= 0).sum())} of {resamples} draws hold no legacy score above 0; a ratio needs"
        message += " more items that the legacy gets right"
        raise TooFewPairs(message)
    draws = drawn.real / drawn.imag
    estimate = float(numerator.sum() / denominator.sum())
    jackknife = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    if np.ptp(jackknife) <= 1e-12 * max(1.0, abs(estimate)):  # rounding of equal sums
        message = f"all {numerator.size} clusters are alike, which a bootstrap takes for certainty; measure more items"
        message += ", or use paired.difference_interval or paired.ratio_interval"
        raise TooFewPairs(message)
    bounds = np.quantile(draws, _bca_probabilities(draws, estimate, jackknife, level))
    method = f"BCa bootstrap over {numerator.size} clusters, {resamples} resamples"
    return Interval(estimate, min(float(bounds[0]), estimate), max(float(bounds[1]), estimate), level, method)


def _drawn_totals(
    numerator: FloatArray, denominator: FloatArray, rng: np.random.Generator, resamples: int
) -> npt.NDArray[np.complex128]:
    """Totals of as many clusters as there are, drawn with replacement; real the numerator, imaginary the other."""
    groups = numerator.size
    both = numerator + 1j * denominator  # one look-up fetches the two
    batch = max(1, _BATCH // groups)
    return np.concatenate(
        [
            both[rng.integers(0, groups, size=(min(batch, resamples - start), groups))].sum(axis=1)
            for start in range(0, resamples, batch)
        ]
    )


def _bca_probabilities(draws: FloatArray, estimate: float, jackknife: FloatArray, level: float) -> FloatArray:
    """Which quantiles of the draws are the bounds; draws that equal the estimate count by half."""
    deviations = jackknife.mean() - jackknife
    acceleration = float((deviations**3).sum() / (6 * (deviations @ deviations) ** 1.5))
    bias = normal_quantile(float(((draws < estimate).mean() + (draws <= estimate).mean()) / 2))
    z = bias + np.array([normal_quantile((1 - level) / 2), normal_quantile((1 + level) / 2)])
    return normal_tail(-(bias + z / (1 - acceleration * z)))
