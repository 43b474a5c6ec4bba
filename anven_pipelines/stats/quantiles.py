"""Interval for the difference of a quantile between two arms, such as p95 latency."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import normal_tail, t_quantile
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.pairs import MIN_CLUSTERS, Labels, cluster_labels, effective_number, scaled_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

MIN_TAIL = 5  # independent observations beyond the quantile; fewer leave the bootstrap nothing to vary
_BATCH = 100  # resamples at once: 2,000 pairs then take 1.6 MB an arm
_ROUNDING = 1e-9


def paired_quantile_difference(  # noqa: PLR0913 - one test, its allowance and its sample
    target: FloatArray,
    legacy: FloatArray,
    *,
    quantile: float,
    allowed_share: float = 0.0,
    allowed: float = 0.0,
    clusters: Labels | None = None,
    weights: FloatArray | None = None,
    level: float,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Interval:
    """Confidence interval for quantile(target) - quantile(legacy), less an allowance; clusters are drawn whole.

    The allowance is the larger of `allowed_share` x quantile(legacy) and `allowed`. It is taken from each resample
    anew, so that the legacy's quantile is not taken as known.

    Each bound errs with the tail of t on as many degrees of freedom as there are independent observations beyond the
    quantile, less one, in place of the normal: they are what the bound rests on. How many there are is judged by how
    much those of one cluster come together.

    Args:
        target: One finite value per item, shape (n,), any unit.
        legacy: The same items in the same order.
        quantile: Which quantile, in (0, 1), e.g. 0.95.
        allowed_share: Increase that does not count, as a share of the legacy's quantile, at least 0.
        allowed: Increase that does not count, in the unit of the values, at least 0; the larger of both holds.
        clusters: Cluster (conversation) of each item, shape (n,); None if items are independent.
        weights: What each item stands for, such as calls of the traffic, shape (n,), above 0; None if all count once.
        level: Two-sided coverage, e.g. 0.90.
        rng: Seeded by the caller, so that a verdict can be reproduced.
        resamples: Bootstrap samples, at least 100.

    Returns:
        Percentile interval in the unit of the values. It is approximate, and its bounds are limited by the values seen
        (docs/statistics.md).

    Raises:
        TooFewPairs: fewer than MIN_TAIL independent observations are expected beyond the quantile in an arm, or fewer
            than MIN_CLUSTERS clusters, by their number or by Kish's effective number.
        ValueError: shapes disagree, a value is not finite, or another argument is out of range.

    Source:
        Davison and Hinkley (1997), Bootstrap Methods and their Application, section 3.8, for clusters; Hesterberg
        (2014), arXiv:1411.5279, section 5.3, for percentiles of t. That its degrees of freedom count the tail is ours:
        error rates in docs/statistics.md.
    """
    target, legacy = np.asarray(target, dtype=np.float64), np.asarray(legacy, dtype=np.float64)
    _check(target, legacy, quantile=quantile, level=level, resamples=resamples)
    sample = _Sample.of(target.size, clusters, weights)
    tail = _tail(target, legacy, sample, quantile)

    def change(counts: FloatArray) -> FloatArray:
        after, before = (_quantiles(values, sample, counts, quantile) for values in (target, legacy))
        return after - np.maximum((1 + allowed_share) * before, before + allowed)

    draws = np.concatenate([change(counts) for counts in _resampled(sample.sizes.size, rng, resamples)])
    estimate = float(change(np.ones((1, sample.sizes.size)))[0])
    error = float(normal_tail(np.asarray(t_quantile((1 + level) / 2, tail - 1))))
    lower, upper = np.quantile(draws, [error, 1 - error])
    over = "" if sample.sizes.size == target.size else f" over {sample.sizes.size} clusters"
    method = f"paired percentile bootstrap{over}, {resamples} resamples, like {tail:.1f} values beyond the quantile"
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate), level, method)


def weighted_quantile(values: FloatArray, quantile: float, *, weights: FloatArray | None = None) -> float:
    """Return a quantile of items that stand for unequal numbers of calls; NumPy's own where all weigh the same.

    Args:
        values: Shape (n,), n at least 1.
        quantile: Which quantile, in (0, 1).
        weights: What each item stands for, shape (n,), above 0; None if all count once.
    """
    sample = _Sample.of(values.size, None, weights)
    return float(_quantiles(values, sample, np.ones((1, values.size)), quantile)[0])


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
        Percentile interval in the unit of the values; near MIN_TAIL it covers less than `level`
        (docs/statistics_estimators.md).

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


class _Sample(NamedTuple):
    """Cluster of each item, its weight (1 on average), and the summed weight of each cluster."""

    labels: IntArray
    weights: FloatArray
    sizes: FloatArray

    @staticmethod
    def of(n: int, clusters: Labels | None, weights: FloatArray | None) -> _Sample:
        labels = cluster_labels(clusters, n)
        scaled = scaled_weights(weights, n)
        counted = np.ones(n) if scaled is None else scaled
        return _Sample(labels, counted, np.bincount(labels, weights=counted).astype(np.float64))


def _resampled(groups: int, rng: np.random.Generator, resamples: int) -> Iterator[FloatArray]:
    """Draw as many clusters as there are, with replacement: how often each was drawn, shape (batch, groups)."""
    for start in range(0, resamples, _BATCH):
        batch = min(_BATCH, resamples - start)
        cells = rng.integers(0, groups, size=(batch, groups)) + groups * np.arange(batch)[:, None]
        yield np.bincount(cells.ravel(), minlength=batch * groups).reshape(batch, groups).astype(np.float64)


def _quantiles(values: FloatArray, sample: _Sample, counts: FloatArray, quantile: float) -> FloatArray:
    """Quantile of each resample, shape (batch,): an item that counts w times stands as w equal values.

    Linear between two neighbours, as NumPy's; with fractional weights the neighbour is one mean weight further up.
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[:, sample.labels[order]] * sample.weights[order], axis=1)
    place = quantile * (reached[:, -1] - 1)
    below = np.floor(place)
    last = values.size - 1
    first, second = (
        values[order][np.minimum((reached <= rank[:, None]).sum(axis=1), last)] for rank in (below, below + 1)
    )
    return np.asarray(first + (place - below) * (second - first))


def _tail(target: FloatArray, legacy: FloatArray, sample: _Sample, quantile: float) -> float:
    """Return how many independent observations are expected beyond the quantile, in the arm that has fewer."""
    groups, clusters = sample.sizes.size, effective_number(sample.sizes)
    if clusters < MIN_CLUSTERS - _ROUNDING:
        message = (
            f"{target.size} pairs in {groups} clusters, which count like {clusters:.1f}; {MIN_CLUSTERS} are needed for "
            f"the {quantile:g} quantile: measure more conversations"
        )
        raise TooFewPairs(message)
    share = min(quantile, 1 - quantile)
    effective = min(_independent(values, sample, quantile) for values in (target, legacy))
    if effective * share < MIN_TAIL - _ROUNDING:
        message = (
            f"{target.size} pairs count like {effective:.0f} independent, equal ones for the {quantile:g} quantile; at "
            f"least {math.ceil(MIN_TAIL / share - _ROUNDING)} are needed: measure more conversations"
        )
        raise TooFewPairs(message)
    return effective * share


def _independent(values: FloatArray, sample: _Sample, quantile: float) -> float:
    """Return how many independent, equal items tell as much about the share of values beyond the quantile."""
    at = _quantiles(values, sample, np.ones((1, sample.sizes.size)), quantile)[0]
    beyond = (values >= at if quantile >= 0.5 else values <= at).astype(np.float64)  # noqa: PLR2004 - the median
    share = float(np.average(beyond, weights=sample.weights))
    sums = np.bincount(sample.labels, weights=sample.weights * (beyond - share))
    squares = float(sums @ sums)
    if squares <= _ROUNDING:  # nothing tells how alike a cluster is: it counts as one item
        return effective_number(sample.sizes)
    found = share * (1 - share) * float(sample.weights.sum()) ** 2 / squares
    return min(found, effective_number(sample.weights))


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
    if target.size * share < MIN_TAIL - _ROUNDING:
        needed = math.ceil(MIN_TAIL / share - _ROUNDING)
        message = (
            f"{target.size} {what} for the {quantile:g} quantile; at least {needed} are needed: measure more items"
        )
        raise TooFewPairs(message)
