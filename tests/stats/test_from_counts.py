"""Bounds from sums and histograms are those of the observations, or wider, and hold at all looks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.asymptotic_sequence import AsymptoticMean
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.from_counts import (
    Bucket,
    Sums,
    asymptotic_difference,
    asymptotic_mean,
    bounded_mean,
    bucket_quantile,
    pooled,
    randomised_difference,
)
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.quantile_sequence import QuantileSequence
from anven_pipelines.stats.randomised_difference import AsymptoticDifference

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

EDGES = (0.0, 100.0, 200.0, 500.0, 1000.0, math.inf)


def sums(values: npt.NDArray[Any]) -> Sums:
    return Sums(values.size, float(values.sum()), float((values**2).sum()))


def histogram(values: npt.NDArray[np.float64], edges: Sequence[float] = EDGES) -> dict[Bucket, float]:
    return {(low, high): float(((values > low) & (values <= high)).sum()) for low, high in pairwise(edges)}


def test_a_hand_computed_difference() -> None:
    """900 target and 2,700 legacy units at a share of 1/4, of which 45 and 27 failed."""
    found = randomised_difference(Sums(900, 45, 45), Sums(2700, 27, 27), share=0.25, level=0.9)

    assert found.estimate == pytest.approx((45 / 0.25 - 27 / 0.75) / 3600)  # 4 points
    squares = 45 / 0.25**2 + 27 / 0.75**2
    assert squares == 768
    reach = gamma_exponential_bound(768, alpha=0.05, v_opt=1000 * 0.1 / (0.25 * 0.75), scale=4) / 3600
    assert (found.lower, found.upper) == pytest.approx((0.04 - reach, 0.04 + reach))
    assert found.lower > 0.01  # a limit of one point is broken for certain


def test_a_hand_computed_quantile_from_buckets() -> None:
    """Of 2,000 values 100 lie above 500 ms: p95 is at the edge, and may lie in either bucket beside it."""
    counts = {(0.0, 100.0): 1000.0, (100.0, 200.0): 600.0, (200.0, 500.0): 300.0, (500.0, 1000.0): 100.0}
    found = bucket_quantile([(counts, 0.05)], quantile=0.95)

    assert (found.estimate, found.lower, found.upper) == (500.0, 200.0, 1000.0)
    open_end = bucket_quantile([({(0.0, 100.0): 10.0, (1000.0, math.inf): 90.0}, 0.05)], quantile=0.95)
    assert (open_end.estimate, open_end.lower, open_end.upper) == (1000.0, 1000.0, math.inf)


@pytest.mark.parametrize("seed", range(5))
def test_bounds_from_buckets_contain_those_of_every_distribution_that_fits_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(5, 0.7, 3000)
    found = bucket_quantile([(histogram(values), 0.05)], quantile=0.95)

    low, high = np.array([*EDGES[:-1]]), np.array([*EDGES[1:-1], 1e5])
    place = np.searchsorted(EDGES, values) - 1
    for fill in (rng.random(values.size), np.full(values.size, 1e-9), np.full(values.size, 1.0)):
        other = low[place] + fill * (high[place] - low[place])  # other values in the same buckets
        exact = QuantileSequence(quantile=0.95, level=0.95).update(other).current()
        assert found.lower <= exact.lower * 1.005
        assert found.upper >= exact.upper / 1.005


def test_asymptotic_bounds_are_those_of_the_values() -> None:
    rng = np.random.default_rng(3)
    values, treated = rng.lognormal(-5, 0.5, 4000), rng.random(4000) < 0.25
    exact = AsymptoticMean(level=0.95).update(values).current()
    found = asymptotic_mean(sums(values), level=0.95)
    assert (found.lower, found.upper) == pytest.approx((exact.lower, exact.upper))

    one_by_one = AsymptoticDifference(level=0.95).update(values, treated, share=0.25).current()
    together = asymptotic_difference(sums(values[treated]), sums(values[~treated]), share=0.25, level=0.95)
    assert together.upper - together.lower == pytest.approx(one_by_one.upper - one_by_one.lower, rel=0.02)
    assert together.estimate == pytest.approx(values[treated].mean() - values[~treated].mean())


def test_too_little_is_told() -> None:
    with pytest.raises(TooFewPairs, match="0 observations"):
        bounded_mean(Sums(0, 0, 0), level=0.95)
    with pytest.raises(TooFewPairs, match="499 values"):
        asymptotic_mean(Sums(499, 1.0, 1.0), level=0.95)
    with pytest.raises(TooFewPairs, match="0 values of the target"):
        asymptotic_difference(Sums(0, 0, 0), Sums(900, 1, 1), share=0.5, level=0.95)
    with pytest.raises(TooFewPairs, match="0 values in the histogram"):
        bucket_quantile([({(0.0, 1.0): 0.0}, 0.05)], quantile=0.95)
    with pytest.raises(TooFewPairs, match="0 observations"):
        pooled([])


def test_streams_are_added_up_by_their_weight() -> None:
    found = pooled([(Interval(1.0, 0.0, 2.0, 0.99, "m"), 3), (Interval(5.0, 4.0, 8.0, 0.97, "m"), 1)])
    assert (found.estimate, found.lower, found.upper) == (2.0, 1.0, 3.5)
    assert found.level == pytest.approx(0.96)


def test_bounds_from_sums_hold_at_all_looks() -> None:
    """200 streams of rare failures that come more often by day, looked at 20 times each: 10 % may fail, ever."""
    rng = np.random.default_rng(7)
    looks, step, share, runs = 20, 400, 0.25, 200
    n = looks * step
    chance = 0.02 + 0.015 * np.sin(np.arange(n) / n * 12)
    wrong = wrong_mean = 0
    for _ in range(runs):
        treated, bad = rng.random(n) < share, rng.random(n) < chance
        counts = np.cumsum([treated, ~treated, bad & treated, bad & ~treated], axis=1)[:, step - 1 :: step]
        is_out = is_mean_out = False
        for k, (target_n, legacy_n, target_bad, legacy_bad) in enumerate(counts.T, 1):
            found = randomised_difference(
                Sums(target_n, target_bad, target_bad), Sums(legacy_n, legacy_bad, legacy_bad), share=share, level=0.9
            )
            is_out |= not found.lower <= 0 <= found.upper
            mean = bounded_mean(Sums(k * step, target_bad + legacy_bad, target_bad + legacy_bad), level=0.9)
            is_mean_out |= not mean.lower <= chance[: k * step].mean() <= mean.upper
        wrong, wrong_mean = wrong + is_out, wrong_mean + is_mean_out
    assert wrong <= 0.1 * runs
    assert wrong_mean <= 0.1 * runs


def test_quantile_bounds_of_workers_that_share_all_their_units_hold_at_all_looks() -> None:
    """Three workers see the very same values: adding their counts up as if they were independent would be bolder."""
    rng = np.random.default_rng(11)
    edges = (0.0, *(50 * 1.1**k for k in range(60)), math.inf)
    truth, wrong, runs = float(np.exp(5 + 0.5 * 1.6448536)), 0, 200
    for _ in range(runs):
        values = rng.lognormal(5, 0.5, 3000)
        is_out = False
        for n in range(200, 3001, 200):
            counts = histogram(values[:n], edges)
            found = bucket_quantile([(counts, 0.1 / 2), (counts, 0.1 / 6), (counts, 0.1 / 12)], quantile=0.95)
            is_out |= not found.lower <= truth <= found.upper
        wrong += is_out
    assert wrong <= 0.1 * runs
