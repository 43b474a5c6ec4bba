"""Whether the target's mean lies no further below the legacy's than a margin, and the ratios that this refutes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import normal_tail, root_between, t_tail
from anven_pipelines.stats.interval import Interval, tail_of
from anven_pipelines.stats.pairs import FloatArray, Labels, Pairs, counted_over, pair_up
from anven_pipelines.stats.score import (
    MarginEvidence,
    evidence_of_counts,
    evidence_of_differences,
    evidence_of_sums,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.stats.sample_size import MarginKind

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
    check_test(margin, level)
    pairs = pair_up(target, legacy, clusters, weights)
    evidence = margin_evidence(pairs, margin, kind)
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
    tail = tail_of(level)
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


def margin_evidence(pairs: Pairs, margin: float, kind: MarginKind) -> MarginEvidence:
    """Return what the pairs say for and against a mean above the margin."""
    if kind == "absolute":
        return evidence_of_differences(pairs.target, pairs.legacy, pairs.sizes, margin=margin)
    return _ratio_evidence(pairs, 1 - margin)


def check_test(margin: float, level: float) -> None:
    """Raise ValueError for a margin or a one-sided level that is out of range."""
    if not 0 <= margin < 1:
        message = (
            f"margin is {margin}; a share of the legacy mean from 0 up to, not including, 1 is needed (3 % is 0.03)"
        )
        raise ValueError(message)
    if not 0 < level < 0.5:  # noqa: PLR2004 - one half is where either claim would hold by a coin toss
        message = f"level is {level}; a one-sided error rate between 0 and 0.5 is needed, e.g. 0.05"
        raise ValueError(message)


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
    return f"empirical score test of the {what} of paired means{counted_over(pairs)}"


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
