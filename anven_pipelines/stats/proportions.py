"""Tests and intervals for counts of successes."""

from __future__ import annotations

import math
from typing import Literal

from anven_pipelines.stats.distributions import beta_quantile, fair_coin_cdf
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


def failure_bound(failures: int, n: int, *, level: float) -> float:
    """Exact upper bound for a failure rate; without a failure it is the exact form of the rule of three.

    No failure in 300 trials leaves a rate of up to 1 % possible at a level of 0.95 (rule of three: 3 / 300).

    Args:
        failures: Failures that were seen, 0 to n.
        n: Number of independent trials, at least 1.
        level: One-sided coverage, e.g. 0.95.

    Returns:
        The largest rate, in (0, 1], at which so few failures still have a chance of 1 - level.

    Raises:
        ValueError: no trials, failures outside 0 to n, or `level` is no coverage.

    Source:
        Clopper and Pearson (1934), Biometrika 26:404; no failure: Hanley and Lippman-Hand (1983), JAMA 249:1743, and
        Eypasch et al. (1995), BMJ 311:619.
    """
    _check_counts(failures, n, "failures")
    _check_level(level, "one-sided")
    return beta_quantile(level, failures + 1, n - failures) if failures < n else 1.0


def trials_without_failure(rate: float, *, level: float) -> int:
    """Return how many trials without any failure prove that the rate of failures is below `rate`.

    Args:
        rate: Acceptable failure rate, in (0, 1), e.g. 0.01.
        level: One-sided coverage, e.g. 0.95.

    Returns:
        Number of trials, about 3 / rate at 0.95: the smallest n with (1 - rate)^n at most 1 - level.

    Raises:
        ValueError: an argument is out of range.

    Source:
        As `failure_bound`.
    """
    if not 0 < rate < 1:
        message = f"rate is {rate}; a share between 0 and 1 is needed (1 % is 0.01)"
        raise ValueError(message)
    _check_level(level, "one-sided")
    return math.ceil(math.log1p(-level) / math.log1p(-rate) - 1e-9)


def unpaired_difference_interval(
    target_successes: int, target_n: int, legacy_successes: int, legacy_n: int, *, level: float
) -> Interval:
    """Newcombe's hybrid score interval for the difference of two proportions on different items.

    Only for arms that did not see the same items, such as a canary; on the same items
    `anven_pipelines.stats.paired.difference_interval` is far narrower.

    Args:
        target_successes: Successes of the target, 0 to target_n.
        target_n: Independent trials of the target, at least 1.
        legacy_successes: Successes of the legacy, 0 to legacy_n.
        legacy_n: Independent trials of the legacy, at least 1.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in [-1, 1] for target minus legacy.

    Raises:
        ValueError: no trials, successes outside 0 to n, or `level` is no coverage.

    Source:
        Newcombe (1998), Statistics in Medicine 17:873, method 10.
    """
    target = wilson_interval(target_successes, target_n, level=level)
    legacy = wilson_interval(legacy_successes, legacy_n, level=level)
    estimate = target.estimate - legacy.estimate
    lower = estimate - math.hypot(target.estimate - target.lower, legacy.upper - legacy.estimate)
    upper = estimate + math.hypot(target.upper - target.estimate, legacy.estimate - legacy.lower)
    return Interval(estimate, lower, upper, level, "Newcombe interval of independent proportions")


def _interval(successes: int, n: int, *, level: float, method: Literal["wilson", "exact"], words: str) -> Interval:
    _check_counts(successes, n, "successes")
    _check_level(level, "two-sided")
    from scipy import stats  # noqa: PLC0415 - takes 0.5 s to import

    bounds = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method=method)
    return Interval(successes / n, float(bounds.low), float(bounds.high), level, words)


def _check_counts(count: int, n: int, what: str) -> None:
    if n < 1 or not 0 <= count <= n:
        message = f"{count} {what} in {n} trials; at least one trial and 0 to n {what} are needed"
        raise ValueError(message)


def _check_level(level: float, kind: str) -> None:
    if not 0 < level < 1:
        message = f"level is {level}; a {kind} coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
