"""The interval of a paired mean covers as promised, also where items are not independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.means import MIN_CLUSTERS, paired_mean_interval


def test_without_clusters_it_is_the_one_sample_t_interval() -> None:
    difference = np.random.default_rng(1).lognormal(size=40)
    interval = paired_mean_interval(difference, clusters=None, level=0.9)
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.9)
    assert interval.lower == pytest.approx(expected.low)
    assert interval.upper == pytest.approx(expected.high)
    assert interval.estimate == pytest.approx(difference.mean())


def test_clusters_of_one_change_nothing() -> None:
    difference = np.random.default_rng(2).normal(size=30)
    alone = paired_mean_interval(difference, clusters=None, level=0.9)
    singles = paired_mean_interval(difference, clusters=np.arange(30)[::-1], level=0.9)
    assert (singles.lower, singles.upper) == pytest.approx((alone.lower, alone.upper))


def test_the_error_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 25, size=200)
    difference = rng.normal(size=25)[clusters] + rng.normal(size=200)
    interval = paired_mean_interval(difference, clusters=clusters, level=0.9)
    fit = sm.OLS(difference, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    reach = stats.t.ppf(0.95, 24) * fit.bse[0]
    assert interval.upper - interval.estimate == pytest.approx(reach, rel=1e-9)


@pytest.mark.parametrize(("clusters", "turns"), [(100, 1), (60, 5), (MIN_CLUSTERS, 1)])
def test_normal_amounts_are_covered_as_promised(clusters: int, turns: int) -> None:
    misses = _misses(clusters=clusters, turns=turns, skewed=False)
    assert misses == pytest.approx(0.10, abs=0.03)


def test_skewed_amounts_are_missed_twice_as_often_as_promised_at_the_smallest_size() -> None:
    # 200,000 samples gave 21.1 % in place of 10 %; this is what the docstring tells.
    assert _misses(clusters=MIN_CLUSTERS, turns=1, skewed=True) == pytest.approx(0.211, abs=0.032)


def test_ignoring_clusters_would_miss_far_too_often() -> None:
    assert _misses(clusters=60, turns=5, skewed=False, robust=False) > 0.25


def _misses(*, clusters: int, turns: int, skewed: bool, robust: bool = True) -> float:
    """Return how often a 90 % interval misses the true mean, over 1,500 simulated data sets."""
    rng = np.random.default_rng(20)
    labels = np.repeat(np.arange(clusters), turns)
    truth = math.exp(0.5) if skewed else 0.0
    missed = 0
    for _ in range(1_500):
        shared = rng.normal(size=clusters)
        amounts = (np.exp(shared) if skewed else shared)[labels] + rng.normal(scale=0.5, size=labels.size) * (turns > 1)
        interval = paired_mean_interval(amounts, clusters=labels if robust else None, level=0.9)
        missed += not interval.lower <= truth <= interval.upper
    return missed / 1_500


def test_equal_differences_leave_no_doubt() -> None:
    interval = paired_mean_interval(np.full(20, 0.25), clusters=None, level=0.9)
    assert (interval.lower, interval.estimate, interval.upper) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("clusters", [None, np.arange(MIN_CLUSTERS - 1), np.zeros(500, dtype=np.int64)])
def test_too_few_clusters_give_no_interval(clusters: np.ndarray[tuple[int], np.dtype[np.int64]] | None) -> None:
    size = MIN_CLUSTERS - 1 if clusters is None else clusters.size
    with pytest.raises(TooFewPairs, match=f"at least {MIN_CLUSTERS} are needed"):
        paired_mean_interval(np.zeros(size), clusters=clusters, level=0.9)


def test_a_few_heavy_items_give_no_interval() -> None:
    heavy = np.r_[1e6, np.ones(199)]
    for clusters in (None, np.arange(200) // 2):
        with pytest.raises(TooFewPairs, match="at least 10 are needed for an interval"):
            paired_mean_interval(np.ones(200), clusters=clusters, weights=heavy, level=0.9)


def test_no_difference_at_all_gives_no_interval() -> None:
    with pytest.raises(TooFewPairs, match="0 independent items"):
        paired_mean_interval(np.array([]), clusters=None, level=0.9)


@pytest.mark.parametrize(
    ("difference", "clusters", "level", "message"),
    [
        ([math.nan] * 20, None, 0.9, "20 differences are NaN"),
        ([math.inf] + [0.0] * 19, None, 0.9, "1 differences are NaN or infinite"),
        ([0.0] * 20, [0] * 19, 0.9, "one each is needed"),
        ([0.0] * 20, None, 1.0, "level is 1.0"),
        ([0.0] * 20, None, -0.1, "level is -0.1"),
    ],
)
def test_unusable_input_is_refused(
    difference: list[float], clusters: list[int] | None, level: float, message: str
) -> None:
    labels = None if clusters is None else np.array(clusters)
    with pytest.raises(ValueError, match=message):
        paired_mean_interval(np.array(difference), clusters=labels, level=level)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=MIN_CLUSTERS, max_size=60),
    st.floats(0.0, 0.98),
    st.floats(-1e3, 1e3),
)
def test_the_interval_moves_with_the_amounts_and_widens_with_the_level(
    amounts: list[float], level: float, shift: float
) -> None:
    difference = np.array(amounts)
    interval = paired_mean_interval(difference, clusters=None, level=level)
    moved = paired_mean_interval(difference + shift, clusters=None, level=level)
    wider = paired_mean_interval(difference, clusters=None, level=level + 0.01)
    assert interval.lower <= interval.estimate <= interval.upper
    assert moved.lower == pytest.approx(interval.lower + shift, abs=1e-6)
    assert wider.lower <= interval.lower + 1e-9
    assert wider.upper >= interval.upper - 1e-9


def test_a_whole_weight_is_that_many_equal_items_of_one_cluster() -> None:
    rng = np.random.default_rng(5)
    difference, weights = rng.lognormal(size=60), rng.integers(1, 5, 60)
    weighted = paired_mean_interval(difference, clusters=None, weights=weights.astype(np.float64), level=0.9)
    repeated = paired_mean_interval(
        np.repeat(difference, weights), clusters=np.repeat(np.arange(60), weights), level=0.9
    )
    assert (weighted.estimate, weighted.lower, weighted.upper) == pytest.approx(
        (repeated.estimate, repeated.lower, repeated.upper), rel=1e-12
    )
    assert weighted.method == "weighted paired t"
    with pytest.raises(ValueError, match="finite weights above 0"):
        paired_mean_interval(difference, clusters=None, weights=np.zeros(60), level=0.9)
