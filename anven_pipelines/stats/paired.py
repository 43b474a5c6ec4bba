"""Decisions and intervals on two arms that were scored on the same items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.cluster_t import guarded_t_bound
from anven_pipelines.stats.distributions import normal_quantile, normal_tail, root_between, t_quantile, t_tail
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.pairs import FloatArray, Labels, Pairs, effective_number, pair_up
from anven_pipelines.stats.score import (
    MarginEvidence,
    evidence_of_counts,
    evidence_of_differences,
    evidence_of_sums,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.stats.sample_size import MarginKind

Direction = Literal["noninferior", "inferior"]

MOST_ITEMS = 10_000_000  # a plan above this is no plan
_SMALLEST_RATIO, _LARGEST_RATIO = 1e-9, 1e9


@dataclass(frozen=True)
class NonInferiority:
    """Result of the test whether the target's mean lies no further below the legacy's than the margin.

    `statistic` is the standardised distance from the margin, positive above it and negative below; 0 where the
    imagined pair outweighs the distance. `p_noninferior` and `p_inferior` are one-sided; both exceed one half there.
    """

    p_noninferior: float
    p_inferior: float
    statistic: float
    method: str
    n_pairs: int
    n_clusters: int
    margin: float
    kind: MarginKind
    level: float

    @property
    def proven(self) -> bool:
        """Whether the target is proven to lie above the margin."""
        return self.p_noninferior < self.level

    @property
    def refuted(self) -> bool:
        """Whether the target is proven to lie below the margin."""
        return self.p_inferior < self.level


@dataclass(frozen=True)
class ItemsNeeded:
    """Total number of items, those at hand included, at which the test would decide with `power`."""

    total: int
    direction: Direction
    power: float


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
    tail = _tail(level)
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
        method = f"paired t interval{_over(pairs)}, one imagined pair beyond each bound"
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


def ratio_interval(
    target: FloatArray,
    legacy: FloatArray,
    *,
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
) -> Interval:
    """Confidence interval for mean(target) / mean(legacy): the ratios that `noninferiority` refutes on neither side.

    `lower > 1 - margin` holds exactly where `noninferiority(..., level=(1 - level) / 2)` is proven, and
    `upper < 1 - margin` exactly where it is refuted.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: Two-sided coverage, e.g. 0.90 beside a one-sided decision at 0.05.

    Returns:
        Interval without unit; `estimate` and `upper` are infinite where the legacy never scored.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters, or neither arm ever scored.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a weight is not above 0, or
            `level` is no coverage.

    Source:
        Tang, Tang and Chan (2003), Statistics in Medicine 22:1217, inverted by root finding.
    """
    tail = _tail(level)
    pairs = pair_up(target, legacy, clusters, weights)
    target_sum, legacy_sum = float(pairs.target.sum()), float(pairs.legacy.sum())
    if target_sum == legacy_sum == 0:
        message = (
            f"neither arm scored above 0 in {pairs.n_pairs} pairs; a ratio needs items that one of them gets right"
        )
        raise TooFewPairs(message)
    estimate = target_sum / legacy_sum if legacy_sum else math.inf
    start = estimate if 0 < estimate < math.inf else 1.0
    lower = _crossing(lambda ratio: _p_at_ratio(pairs, ratio)[0] - tail, start=start) if target_sum else 0.0
    upper = _crossing(lambda ratio: tail - _p_at_ratio(pairs, ratio)[1], start=start) if legacy_sum else math.inf
    return Interval(estimate, lower, upper, level, f"inverted {_method(pairs, 'relative')}")


def noninferiority(
    target: FloatArray,
    legacy: FloatArray,
    *,
    margin: float,
    kind: MarginKind = "relative",
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
) -> NonInferiority:
    """Test mean(target) against (1 - margin) x mean(legacy), or mean(legacy) - margin, in both directions.

    The total of z = target - (1 - margin) x legacy, or target - legacy + margin, is compared with its standard error
    at the margin, so that the legacy mean is measured like the target's and not taken as known. Independent items
    scored 0 or 1: the score test of paired proportions. Any other scores, and weighted ones: the same test on cluster
    totals with an empirical likelihood and t with G - 1 degrees of freedom. Either claim must survive an imagined pair
    that speaks against it (half a pair for non-inferiority of independent items, one pair or cluster otherwise), so no
    sample is infinitely sure.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        margin: Acceptable loss, in [0, 1): as a share of the legacy mean (0.03 keeps 97 % of it) or in score points.
            With 0, `proven` says that the target is better.
        kind: "relative" for a share of the legacy mean, "absolute" for score points.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: One-sided error rate of each claim, below 0.5, e.g. 0.05.

    Returns:
        Both p-values; at most one of `proven` and `refuted` is True.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a weight is not above 0, or
            `margin` or `level` is out of range.

    Source:
        Nam and Blackwelder (2002), Statistics in Medicine 21:689; Tang, Tang and Chan (2003), the same, 22:1217;
        Owen (2001), Empirical Likelihood. Error rates: docs/statistics.md.
    """
    _check_test(margin, level)
    pairs = pair_up(target, legacy, clusters, weights)
    evidence = _evidence(pairs, margin, kind)
    p_noninferior, p_inferior = _p_values(pairs, evidence)
    return NonInferiority(
        p_noninferior=p_noninferior,
        p_inferior=p_inferior,
        statistic=max(float(evidence.noninferior.score), 0.0) - max(float(evidence.inferior.score), 0.0),
        method=_method(pairs, kind),
        n_pairs=pairs.n_pairs,
        n_clusters=pairs.n_clusters,
        margin=margin,
        kind=kind,
        level=level,
    )


def items_needed(
    target: FloatArray,
    legacy: FloatArray,
    *,
    margin: float,
    kind: MarginKind = "relative",
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
    power: float = 0.8,
) -> ItemsNeeded | None:
    """Estimate the total number of items at which `noninferiority` would decide, were the estimates the truth.

    The distance from the margin grows with n, less the imagined pair; the standard error grows with its root. Clusters
    are taken to stay as large and as alike as they are.

    Args:
        target: Scores in [0, 1], shape (n,), one per item.
        legacy: Scores in [0, 1], shape (n,), the same items in the same order.
        margin: Acceptable loss as a share of the legacy mean or in score points, in [0, 1).
        kind: "relative" for a share of the legacy mean, "absolute" for score points.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: One-sided error rate, below 0.5.
        power: Chance to decide with that many items, above `level` and below 1.

    Returns:
        The items and the claim they would prove; None where the estimate lies on the margin, or so near it that more
        than MOST_ITEMS would be needed.

    Raises:
        TooFewPairs: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        ValueError: shapes disagree, a score is NaN or outside [0, 1], a weight is not above 0, or
            `margin`, `level` or `power` is out of range.

    Source:
        The power of a score test, with the variance at the margin for `level` and the observed one for `power`;
        Nam and Blackwelder (2002), Statistics in Medicine 21:689, section 4.
    """
    _check_test(margin, level)
    if not level < power < 1:
        message = f"power is {power}; a chance between the level, {level}, and 1 is needed"
        raise ValueError(message)
    pairs = pair_up(target, legacy, clusters, weights)
    totals, n = _totals(pairs, margin, kind), pairs.n_pairs
    effect = float(totals.sum()) / n
    if math.isclose(effect, 0, abs_tol=1e-12):
        return None
    direction: Direction = "noninferior" if effect > 0 else "inferior"
    both = _evidence(pairs, margin, kind)
    evidence = both.noninferior if direction == "noninferior" else both.inferior
    spread = float(np.sum((totals - effect * pairs.sizes) ** 2)) * pairs.n_clusters / (pairs.n_clusters - 1)
    reach = float(
        -normal_quantile(level) * math.sqrt(evidence.variance / n) + normal_quantile(power) * math.sqrt(spread / n)
    )
    # effect x n - guard = reach x sqrt(n), solved for sqrt(n).
    root = (reach + math.sqrt(reach**2 + 4 * abs(effect) * float(evidence.guard))) / (2 * abs(effect))
    total = math.ceil(root**2)
    return ItemsNeeded(total, direction, power) if total <= MOST_ITEMS else None


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


def _totals(pairs: Pairs, margin: float, kind: MarginKind) -> FloatArray:
    if kind == "relative":
        return pairs.target - (1 - margin) * pairs.legacy
    return pairs.target - pairs.legacy + margin * pairs.sizes


def _evidence(pairs: Pairs, margin: float, kind: MarginKind) -> MarginEvidence:
    if kind == "absolute":
        return evidence_of_differences(pairs.target, pairs.legacy, pairs.sizes, margin=margin)
    return _ratio_evidence(pairs, 1 - margin)


def _ratio_evidence(pairs: Pairs, ratio: float) -> MarginEvidence:
    if pairs.counts:
        return evidence_of_counts(*pairs.counts, ratio=ratio)
    return evidence_of_sums(pairs.target, pairs.legacy, pairs.sizes, ratio=ratio)


def _p_at_ratio(pairs: Pairs, ratio: float) -> tuple[float, float]:
    return _p_values(pairs, _ratio_evidence(pairs, ratio))


def _p_values(pairs: Pairs, evidence: MarginEvidence) -> tuple[float, float]:
    scores = np.array([evidence.noninferior.score, evidence.inferior.score])
    p_noninferior, p_inferior = normal_tail(scores) if pairs.counts else t_tail(scores, pairs.n_clusters - 1)
    return float(p_noninferior), float(p_inferior)


def _method(pairs: Pairs, kind: MarginKind) -> str:
    what = "ratio" if kind == "relative" else "difference"
    if pairs.counts:
        return f"score test of the {what} of paired proportions"
    return f"empirical score test of the {what} of paired means{_over(pairs)}"


def _over(pairs: Pairs) -> str:
    """Say what the sums are over, where it is not simply the items."""
    clusters = "" if pairs.alone else f" over {pairs.n_clusters} clusters"
    if pairs.sizes.max() > 1 and pairs.alone:
        return f", weighted (like {effective_number(pairs.sizes):.0f} equal items)"
    return clusters


def _crossing(excess: Callable[[float], float], *, start: float) -> float:
    """Find where a function of a ratio turns from negative to positive; 0 or infinity where it does not."""
    low = high = start
    while excess(low) >= 0:
        low /= 2
        if low < _SMALLEST_RATIO:
            return 0.0
    while excess(high) < 0:
        high *= 2
        if high > _LARGEST_RATIO:
            return math.inf
    return root_between(excess, low, high) if low < high else low


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


def _tail(level: float) -> float:
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
    return (1 - level) / 2


def _check_test(margin: float, level: float) -> None:
    if not 0 <= margin < 1:
        message = (
            f"margin is {margin}; a share of the legacy mean from 0 up to, not including, 1 is needed (3 % is 0.03)"
        )
        raise ValueError(message)
    if not 0 < level < 0.5:  # noqa: PLR2004 - one half is where either claim would hold by a coin toss
        message = f"level is {level}; a one-sided error rate between 0 and 0.5 is needed, e.g. 0.05"
        raise ValueError(message)
