"""Confidence sequences from sums and histograms, where the single observations are not to be had.

A source that counts tells how many observations there were and what they add up to, at each look. That is enough for
bounds that hold at all looks, because each method allows predictions that were fixed before: predicting 0 throughout,
the sum of squared surprises is the sum of squares, and for values in [0, 1] at most their sum. Bounds are wider than
those of the observations themselves, never narrower than they may be.

Several streams of which each meets a unit once, but which share units, are bounded one by one and added up.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.asymptotic_sequence import AsymptoticMean
from anven_pipelines.stats.boundaries import beta_binomial_weight, plausible_counts
from anven_pipelines.stats.confidence_sequence import N_OPT
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.randomised_difference import AsymptoticDifference, RandomisedDifference
from anven_pipelines.stats.sequential import BoundedMean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Sums(NamedTuple):
    """What is known of one arm's observations: how many, their sum, and the sum of their squares or a bound on it."""

    n: float
    total: float
    squares: float


Bucket = tuple[float, float]
"""The edge that its values are above, and the one that they are up to; the last is infinite."""


def bounded_mean(sums: Sums, *, level: float) -> Interval:
    """Confidence sequence for a mean of values in [0, 1], from their sums.

    Args:
        sums: Of the values so far; `squares` may be any bound from above, such as `total`.
        level: Two-sided coverage at all looks.

    Returns:
        Interval for the average of the means so far.

    Raises:
        TooFewPairs: there is no value.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49:1055, theorem 4 with the prediction 0.
    """
    return BoundedMean(level=level, n=int(sums.n), total=sums.total, squares=sums.squares).current()


def randomised_difference(target: Sums, legacy: Sums, *, share: float, level: float) -> Interval:
    """Confidence sequence for the mean effect on values in [0, 1] of an arm that has a fixed share of all.

    Args:
        target: Sums of the arm with that share; `squares` may be any bound from above.
        legacy: Of the other one.
        share: Chance of the target, the same for all observations.
        level: Two-sided coverage at all looks.

    Returns:
        Interval for the mean of target - legacy over all observations.

    Raises:
        TooFewPairs: there is no observation.

    Source:
        As for `RandomisedDifference`, with the prediction 0 in both arms.
    """
    return RandomisedDifference(
        level=level,
        smallest_share=min(share, 1 - share),
        n=int(target.n + legacy.n),
        total=target.total / share - legacy.total / (1 - share),
        squares=target.squares / share**2 + legacy.squares / (1 - share) ** 2,
    ).current()


def asymptotic_mean(sums: Sums, *, level: float) -> Interval:
    """Asymptotic confidence sequence for the mean of any values; needs their squares themselves.

    Raises:
        TooFewPairs: there are too few values, or all are equal.
    """
    return AsymptoticMean(level=level, n=int(sums.n), mean=_mean(sums), squares=_spread(sums)).current()


def asymptotic_difference(target: Sums, legacy: Sums, *, share: float, level: float) -> Interval:
    """Asymptotic confidence sequence for the mean effect on any values; needs their squares themselves.

    Each arm's own mean predicts its values, which in the limit is as good as one that was known before.

    Raises:
        TooFewPairs: an arm has no value, both have too few, or all are equal.
    """
    if not target.n or not legacy.n:
        message = f"{target.n:g} values of the target and {legacy.n:g} of legacy; some of each are needed"
        raise TooFewPairs(message)
    return AsymptoticDifference(
        level=level,
        n=int(target.n + legacy.n),
        mean=_mean(target) - _mean(legacy),
        squares=_spread(target) / share**2 + _spread(legacy) / (1 - share) ** 2,
    ).current()


def bucket_quantile(streams: Sequence[tuple[Mapping[Bucket, float], float]], *, quantile: float) -> Interval:
    """Confidence sequence for a quantile of what several streams show, from histograms.

    What lies between two edges may lie anywhere there: the bounds hold for every distribution that fits the counts.

    Args:
        streams: For each, its counts by bucket, and the chance that its bounds ever fail.
        quantile: In (0, 1).

    Returns:
        Interval in the unit of the edges, from the lower edge of one bucket to the upper edge of another; infinite
        above where the tail is too short or beyond the last edge. Its estimate is the upper edge of the bucket that
        holds the quantile, or the lower one of the last.

    Raises:
        TooFewPairs: there is no value.

    Source:
        Howard and Ramdas (2022), Bernoulli 28:1704, theorem 1: below the quantile lie as many values of each stream
        as its plausible counts say, so of all streams together as many as these add up to.
    """
    pooled: dict[Bucket, float] = {}
    fewest = most = 0
    for counts, alpha in streams:
        n = int(sum(counts.values()))
        plausible = plausible_counts(n, share=quantile, alpha=alpha, weight=beta_binomial_weight(N_OPT, alpha))
        fewest, most = fewest + plausible.fewest, most + plausible.most
        for bucket, count in counts.items():
            pooled[bucket] = pooled.get(bucket, 0) + count
    held = sorted((bucket, count) for bucket, count in pooled.items() if count)
    n = int(sum(count for _, count in held))
    if not n:
        message = "0 values in the histogram; at least one is needed: wait for traffic"
        raise TooFewPairs(message)
    ranks = list(accumulate(count for _, count in held))

    def holding(rank: int) -> Bucket:
        return next(bucket for (bucket, _), count in zip(held, ranks, strict=True) if count >= rank)

    above, upto = holding(max(math.ceil(n * quantile), 1))
    estimate = above if math.isinf(upto) else upto
    lower = holding(fewest)[0] if fewest else 0.0
    upper = holding(most + 1)[1] if most < n else math.inf
    level = 1 - sum(alpha for _, alpha in streams)
    method = f"confidence sequence of the {quantile:g} quantile, from a histogram"
    return Interval(estimate, min(lower, estimate), max(upper, estimate), level, method)


def pooled(parts: Sequence[tuple[Interval, float]]) -> Interval:
    """Interval for a weighted mean of what several intervals cover, however they depend on each other.

    Args:
        parts: Intervals, and what each weighs, such as its number of observations.

    Returns:
        Interval that holds whenever all of them do.

    Raises:
        TooFewPairs: none has any weight.
    """
    weight = sum(weight for _, weight in parts)
    if not weight:
        message = "0 observations; at least one is needed: wait for traffic"
        raise TooFewPairs(message)
    estimate, lower, upper = (
        sum(getattr(interval, end) * share for interval, share in parts if share) / weight
        for end in ("estimate", "lower", "upper")
    )
    level = 1 - sum(1 - interval.level for interval, _ in parts)
    method = parts[0][0].method if len(parts) == 1 else f"{parts[0][0].method}, of {len(parts)} streams"
    return Interval(estimate, min(lower, estimate), max(upper, estimate), level, method)


def _mean(sums: Sums) -> float:
    return sums.total / sums.n if sums.n else 0.0


def _spread(sums: Sums) -> float:
    """Sum of squared distances from the mean; rounding may leave less than nothing."""
    return max(sums.squares - sums.n * _mean(sums) ** 2, 0.0)
