"""How far two arms that were scored on the same items lie apart, and what clusters and weights cost."""

from __future__ import annotations

import math

from anven_pipelines.stats.cluster_t import guarded_t_bound
from anven_pipelines.stats.distributions import normal_quantile, root_between, t_quantile
from anven_pipelines.stats.interval import Interval, tail_of
from anven_pipelines.stats.pairs import FloatArray, Labels, Pairs, counted_over, pair_up


def difference_interval(
    target: FloatArray,
    legacy: FloatArray,
    *,
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
) -> Interval:
    """Confidence interval for mean(target - legacy).

    Tango's score interval where scores are 0 or 1; with clusters or weights, on as many pairs as carry the same
    information: the pairs over the design effect, cluster-robust variance over that of independent items. Graded
    scores: a cluster-robust t interval with the factor G / (G - 1) and G - 1 degrees of freedom, each bound of which
    counts one imagined cluster beyond it: 30 equal pairs do not give an interval without width.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in score points (0.01 is one point in a hundred), within [-1, 1].

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a weight is not above 0, or
            `level` is no coverage.

    Source:
        Tango (1998), Statistics in Medicine 17:891; Rao and Scott (1992), Biometrics 48:577, and Korn and Graubard
        (1998), Survey Methodology 24:193, for effective counts; Miller (2024), arXiv:2411.00640, section 2.
    """
    tail = tail_of(level)
    pairs = pair_up(target, legacy, clusters, weights)
    # Weights have a mean of 1, so that they sum to the number of pairs.
    estimate = float(pairs.target.sum() - pairs.legacy.sum()) / pairs.n_pairs
    if pairs.discordant:
        effect = _design_effect(pairs)
        z = -float(normal_quantile(tail)) if pairs.counts else float(t_quantile(1 - tail, pairs.n_clusters - 1))
        n, gained, lost = (each / effect for each in (pairs.n_pairs, *pairs.discordant))
        bounds = _tango_lower(gained, lost, n, z=z), -_tango_lower(lost, gained, n, z=z)
        like = "" if pairs.counts else f", {pairs.n_pairs} pairs with a design effect of {effect:.2f}"
        method = f"Tango score interval of paired proportions{like}"
    else:
        sums = pairs.target - pairs.legacy
        bounds = (
            float(guarded_t_bound(sums, pairs.sizes, tail=tail, side=-1)),
            float(guarded_t_bound(sums, pairs.sizes, tail=tail, side=1)),
        )
        method = f"paired t interval{counted_over(pairs)}, one imagined pair beyond each bound"
    # Rounding alone may put a bound a hair on the wrong side of the estimate.
    return Interval(estimate, min(bounds[0], estimate), max(bounds[1], estimate), level, method)


def design_effect(
    target: FloatArray, legacy: FloatArray, *, clusters: Labels | None = None, weights: FloatArray | None = None
) -> float:
    """Variance of the mean difference with clusters and weights over that of as many independent, equal pairs.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, shape (n,), above 0; None if all count once.

    Returns:
        A factor of at least 1; where no pair differs nothing says how alike the pairs of a cluster are, and they are
        taken to be one.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], or a weight is not above 0.

    Source:
        Rao and Scott (1992), Biometrics 48:577; Miller (2024), arXiv:2411.00640, section 2.
    """
    return _design_effect(pair_up(target, legacy, clusters, weights))


def _design_effect(pairs: Pairs) -> float:
    n = pairs.n_pairs
    if pairs.sizes.max() <= 1:
        return 1.0
    if pairs.spread <= 0:
        return float(pairs.sizes @ pairs.sizes) / n
    mean = float(pairs.target.sum() - pairs.legacy.sum()) / n
    residuals = pairs.target - pairs.legacy - mean * pairs.sizes
    robust = pairs.n_clusters / (pairs.n_clusters - 1) * float(residuals @ residuals)
    return max(robust / (n * pairs.spread), 1.0)


def _tango_lower(gained: float, lost: float, n: float, *, z: float) -> float:
    """Lower bound for (gained - lost) / n; the upper one is that of the swapped arms, negated."""

    def excess(difference: float) -> float:
        linear = (2 * n - gained + lost) * difference - gained - lost
        p_lost = (math.sqrt(max(linear**2 + 8 * n * lost * difference * (1 - difference), 0)) - linear) / (4 * n)
        variance = n * (2 * p_lost + difference * (1 - difference))
        return gained - lost - n * difference - z * math.sqrt(max(variance, 0))

    # At the estimate itself the variance may vanish and feign a root.
    high = (gained - lost) / n - 1e-9
    return root_between(excess, -1.0, high) if high > -1 and excess(-1.0) > 0 else -1.0
