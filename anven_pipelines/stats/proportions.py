"""Tests and intervals for counts of successes."""

from __future__ import annotations

from typing import Literal

from anven_pipelines.stats.distributions import fair_coin_cdf
from anven_pipelines.stats.interval import Interval

Claim = Literal["differ", "more lost", "more gained"]


def mcnemar_exact(lost: int, gained: int, *, claim: Claim = "differ", mid_p: bool = False) -> float:
    """Exact p-value of McNemar's test on the discordant pairs.

    Args:
        lost: Pairs that only the first arm got right.
        gained: Pairs that only the second arm got right.
        claim: What a small p-value proves; "differ" is two-sided, the others are one-sided.
        mid_p: Count the observed table by half: less conservative, and no longer exact.

    Returns:
        p-value; 1 (mid-p, one-sided: 0.5) where no pair is discordant.

    Raises:
        ValueError: a count is negative.

    Source:
        McNemar (1947), Psychometrika 12:153; mid-p: Fagerland, Lydersen and Laake (2013), BMC Medical Research
        Methodology 13:91.
    """
    if min(lost, gained) < 0:
        message = f"{lost} lost and {gained} gained pairs; counts from 0 up are needed"
        raise ValueError(message)
    total, fewest = lost + gained, {"differ": min(lost, gained), "more lost": gained, "more gained": lost}[claim]
    tail = fair_coin_cdf(fewest, total)
    if mid_p:
        tail = (tail + fair_coin_cdf(fewest - 1, total)) / 2
    return min(1.0, 2 * tail if claim == "differ" else tail)


def wilson_interval(successes: int, n: int, *, level: float) -> Interval:
    """Wilson's score interval for a proportion: right on average over proportions, not for each.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of independent trials, at least 1.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in [0, 1].

    Raises:
        ValueError: no trials, successes outside 0 to n, or `level` is no coverage.

    Source:
        Wilson (1927), Journal of the American Statistical Association 22:209.
    """
    return _interval(successes, n, level=level, method="wilson", words="Wilson score interval")


def clopper_pearson_interval(successes: int, n: int, *, level: float) -> Interval:
    """Exact interval for a proportion: covers at least `level` for every proportion, and is wide for it.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of independent trials, at least 1.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in [0, 1].

    Raises:
        ValueError: no trials, successes outside 0 to n, or `level` is no coverage.

    Source:
        Clopper and Pearson (1934), Biometrika 26:404.
    """
    return _interval(successes, n, level=level, method="exact", words="Clopper-Pearson exact interval")


def _interval(successes: int, n: int, *, level: float, method: Literal["wilson", "exact"], words: str) -> Interval:
    if n < 1 or not 0 <= successes <= n:
        message = f"{successes} successes in {n} trials; at least one trial and 0 to n successes are needed"
        raise ValueError(message)
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
    from scipy import stats  # noqa: PLC0415 - takes 0.5 s to import

    bounds = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method=method)
    return Interval(successes / n, float(bounds.low), float(bounds.high), level, words)
