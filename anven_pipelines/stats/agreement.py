"""How far two raters agree, and what a rater's known errors say of a rate it measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import beta_quantile, normal_quantile
from anven_pipelines.stats.interval import Interval

if TYPE_CHECKING:
    from anven_pipelines.stats.pairs import FloatArray

IntArray = npt.NDArray[np.int64]
Weighting = Literal["unweighted", "linear", "quadratic"]

MIN_RATED = 20  # 20 to 100 items: 90 to 93 % are covered at a nominal 95 % in the worst case: benchmarks/estimators.py


class Share(NamedTuple):
    """How many of a number of independent trials did something."""

    seen: int
    n: int


def kappa_interval(table: IntArray, *, weighting: Weighting = "unweighted", level: float) -> Interval:
    """Cohen's kappa with its large-sample interval.

    Args:
        table: Items by the category that the first (row) and the second rater (column) gave them, shape (k, k); for
            linear and quadratic weights the categories stand in the order of their scale.
        weighting: How a disagreement counts: all alike, by its distance, or by the square of that.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval within [-1, 1]. Where no disagreement was seen the formula's variance is 0: the lower bound then
        takes the exact bound for the share of disagreements, each at its worst, at the observed margins.

    Raises:
        TooFewPairs: fewer than MIN_RATED items, or all of them in one category, where kappa is not defined.
        ValueError: the table is not square, holds no counts, or `level` is no coverage.

    Source:
        Cohen (1960), Educational and Psychological Measurement 20:37; weights: Cohen (1968), Psychological Bulletin
        70:213; variance: Fleiss, Cohen and Everitt (1969), Psychological Bulletin 72:323.
    """
    table = _checked_table(table, level)
    n = int(table.sum())
    shares, agreement = table / n, _agreement_weights(len(table), weighting)
    first, second = shares.sum(axis=1), shares.sum(axis=0)
    expected = float(first @ agreement @ second)
    if math.isclose(expected, 1):
        message = f"both raters put all {n} items in one category; kappa needs items that differ"
        raise TooFewPairs(message)
    observed = float((agreement * shares).sum())
    kappa = (observed - expected) / (1 - expected)
    margins = (agreement @ second)[:, None] + (first @ agreement)[None, :]
    moments = (shares * (agreement - margins * (1 - kappa)) ** 2).sum() - (kappa - expected * (1 - kappa)) ** 2
    reach = normal_quantile((1 + level) / 2) * math.sqrt(max(float(moments), 0) / n) / (1 - expected)
    lower = kappa - reach if table.trace() < n else 1 - beta_quantile((1 + level) / 2, 1, n) / (1 - expected)
    method = f"Cohen's kappa, {weighting}, of {n} items"
    return Interval(kappa, max(lower, -1.0), min(kappa + reach, 1.0), level, method)


def tabulate(first: npt.ArrayLike, second: npt.ArrayLike, *, categories: npt.ArrayLike) -> IntArray:
    """Count the items by the two categories that they were given.

    Args:
        first: Categories of the first rater, shape (n,).
        second: Categories of the second rater, the same items in the same order.
        categories: Every category once, in the order of their scale, shape (k,).

    Returns:
        Counts, shape (k, k).

    Raises:
        ValueError: shapes disagree, or a rating is none of the categories.
    """
    known, ratings = np.asarray(categories), (np.asarray(first), np.asarray(second))
    if ratings[0].ndim != 1 or ratings[0].shape != ratings[1].shape:
        message = f"ratings have shapes {ratings[0].shape} and {ratings[1].shape}; the same items, (n,), are needed"
        raise ValueError(message)
    for rating in ratings:
        if not np.isin(rating, known).all():
            message = f"rating {rating[~np.isin(rating, known)][0]} is none of the categories {known.tolist()}"
            raise ValueError(message)
    order = np.argsort(known)
    rows, columns = (order[np.searchsorted(known, rating, sorter=order)] for rating in ratings)
    return np.bincount(rows * known.size + columns, minlength=known.size**2).reshape(known.size, known.size)


def corrected_rate(positives: Share, *, sensitivity: Share, specificity: Share, level: float) -> Interval:
    """Correct the rate that an imperfect rater measured for its errors, themselves measured on known items.

    Args:
        positives: Items that the rater called positive, of those it rated.
        sensitivity: Truly positive items that it called positive, of those tried.
        specificity: Truly negative items that it called negative, of those tried.
        level: Two-sided coverage, e.g. 0.95.

    Returns:
        Interval in [0, 1] for the true rate; the estimate is that of Rogan and Gladen, drawn into the interval.

    Raises:
        ValueError: counts that cannot be, a rater no better than chance, or `level` is no coverage.

    Source:
        Rogan and Gladen (1978), American Journal of Epidemiology 107:71; interval: Lang and Reiczigel (2014),
        Preventive Veterinary Medicine 113:13.
    """
    for name, (seen, n) in {"positives": positives, "sensitivity": sensitivity, "specificity": specificity}.items():
        if n < 1 or not 0 <= seen <= n:
            message = f"{name} counts {seen} of {n}; at least one trial and 0 to n of them are needed"
            raise ValueError(message)
    _check_level(level)
    z = normal_quantile((1 + level) / 2)
    called, true_positive, true_negative = (share.seen / share.n for share in (positives, sensitivity, specificity))
    hits, correct = _added(sensitivity, 2), _added(specificity, 2)
    if min(true_positive + true_negative, hits.rate + correct.rate) <= 1:
        message = f"sensitivity {true_positive:g} and specificity {true_negative:g} add up to no more than 1; a rater"
        message += " that errs like a coin says nothing of the rate"
        raise ValueError(message)
    estimate = (called + true_negative - 1) / (true_positive + true_negative - 1)
    all_rated, youden = _added(positives, z**2), hits.rate + correct.rate - 1
    rate = (all_rated.rate + correct.rate - 1) / youden
    spread = math.sqrt(all_rated.variance + rate**2 * hits.variance + (1 - rate) ** 2 * correct.variance) / youden
    middle = rate + 2 * z**2 * (rate * hits.variance - (1 - rate) * correct.variance)
    lower, upper = (min(max(bound, 0.0), 1.0) for bound in (middle - z * spread, middle + z * spread))
    method = "Rogan-Gladen estimate, Lang-Reiczigel interval"
    return Interval(min(max(estimate, lower), upper), lower, upper, level, method)


class _Added(NamedTuple):
    """A share after imagined trials, half of each kind."""

    rate: float
    variance: float


def _added(share: Share, trials: float) -> _Added:
    rate = (share.seen + trials / 2) / (share.n + trials)
    return _Added(rate, rate * (1 - rate) / (share.n + trials))


def _agreement_weights(categories: int, weighting: Weighting) -> FloatArray:
    if weighting == "unweighted":
        return np.eye(categories)
    rank = np.arange(categories)
    distance = np.abs(rank[:, None] - rank) / (categories - 1)
    return np.asarray(1 - (distance if weighting == "linear" else distance**2))


def _checked_table(table: IntArray, level: float) -> IntArray:
    _check_level(level)
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:  # noqa: PLR2004 - rows and columns
        message = f"the table has shape {table.shape}; (k, k) with at least two categories is needed"
        raise ValueError(message)
    if table.dtype.kind not in "iu" or (table < 0).any():
        message = f"the table holds {table.dtype} values, the least {table.min()}; counts from 0 up are needed"
        raise ValueError(message)
    if table.sum() < MIN_RATED:
        message = f"{table.sum()} items rated twice; at least {MIN_RATED} are needed: rate more"
        raise TooFewPairs(message)
    return table


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
