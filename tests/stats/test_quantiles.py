from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.quantiles import (
    paired_quantile_difference,
    unpaired_quantile_difference,
    weighted_quantile,
)

RNG = np.random.default_rng(1)
LEGACY = RNG.lognormal(6, 0.4, size=400)
TARGET = LEGACY * 0.9 + RNG.lognormal(4, 0.3, size=400)


def interval(target: Any = TARGET, legacy: Any = LEGACY, **change: Any) -> Any:
    options: dict[str, Any] = {"quantile": 0.95, "level": 0.9, "resamples": 500}
    return paired_quantile_difference(target, legacy, **({"rng": np.random.default_rng(7)} | options | change))


def test_the_estimate_is_the_difference_of_the_two_quantiles() -> None:
    found = interval()
    assert found.estimate == pytest.approx(np.quantile(TARGET, 0.95) - np.quantile(LEGACY, 0.95))
    assert found.lower < found.estimate < found.upper


def test_it_agrees_with_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(9)
    picks = rng.integers(0, 400, size=(5000, 400))
    drawn = np.quantile(TARGET[picks], 0.95, axis=1) - np.quantile(LEGACY[picks], 0.95, axis=1)
    found = interval(resamples=5000)
    error = stats.norm.sf(stats.t.isf(0.05, 400 * 0.05 - 1))
    expected = np.quantile(drawn, [error, 1 - error])
    assert (found.lower, found.upper) == pytest.approx(expected, abs=0.03 * np.ptp(drawn))


def test_a_constant_shift_is_found_without_doubt_because_pairs_stay_together() -> None:
    found = interval(LEGACY + 30)
    assert (found.lower, found.upper) == pytest.approx((30, 30))


def test_the_same_seed_gives_the_same_interval() -> None:
    assert interval() == interval()


def test_swapping_the_arms_negates_the_interval() -> None:
    there, back = interval(), interval(LEGACY, TARGET)
    assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower))


def test_the_bounds_miss_about_as_rarely_as_they_say() -> None:
    rng, misses = np.random.default_rng(3), np.zeros(2)
    truth = (math.exp(0.1) - 1) * math.exp(0.5 * 1.644854)
    for _ in range(200):
        shared = rng.normal(size=200)
        target = np.exp(0.1 + 0.5 * (0.6 * shared + 0.8 * rng.normal(size=200)))
        found = interval(target, np.exp(0.5 * shared), rng=rng, resamples=200)
        misses += [found.upper < truth, found.lower > truth]
    assert (misses / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)).all()


@pytest.mark.parametrize(("groups", "turns"), [(30, 10), (60, 5)])
@pytest.mark.parametrize(("spread", "shared"), [(0.8, 0.0), (0.3, 0.9)])
def test_an_increase_of_what_is_allowed_in_conversations_is_called_less_or_more_at_the_level(
    groups: int, turns: int, spread: float, shared: float
) -> None:
    rng, labels, errors, runs = np.random.default_rng(4), np.repeat(np.arange(groups), turns), np.zeros(2), 200
    legacy_p95 = 800 * math.exp(0.5 * 1.644854)
    base = (legacy_p95 + max(0.2 * legacy_p95, 300)) / math.exp(spread * 1.644854)
    for _ in range(runs):
        first, second = math.sqrt(0.5) * (rng.normal(size=(2, groups))[:, labels] + rng.normal(size=(2, labels.size)))
        latent = shared * first + math.sqrt(1 - shared**2) * second
        arms = base * np.exp(spread * latent), 800 * np.exp(0.5 * first)
        try:
            found = interval(*arms, clusters=labels, allowed_share=0.2, allowed=300, rng=rng, resamples=200)
        except TooFewPairs:
            continue
        errors += [found.upper <= 0, found.lower > 0]
    assert (errors / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)).all()


def test_the_allowance_is_the_larger_one_and_is_as_uncertain_as_the_legacy() -> None:
    allowed = 0.5 * np.quantile(LEGACY, 0.95)
    found = interval(LEGACY * 1.5, allowed_share=0.5, allowed=allowed - 100)
    assert (found.lower, found.upper) == pytest.approx((0, 0))  # target and allowance move together
    assert interval(allowed_share=0.5).estimate == pytest.approx(interval().estimate - allowed)
    assert interval(allowed=30, allowed_share=0).lower == pytest.approx(interval().lower - 30)


def test_conversations_that_are_alike_count_like_one_item() -> None:
    labels = np.repeat(np.arange(100), 4)
    alike = interval(np.repeat(TARGET[:100], 4), np.repeat(LEGACY[:100], 4), clusters=labels)
    assert "100 clusters" in alike.method
    assert alike.upper - alike.lower > 1.5 * (interval().upper - interval().lower)
    with pytest.raises(TooFewPairs, match="400 pairs count like 80 independent, equal ones"):
        interval(np.repeat(TARGET[:80], 5), np.repeat(LEGACY[:80], 5), clusters=np.repeat(np.arange(80), 5))


def test_clusters_of_one_and_equal_weights_change_nothing() -> None:
    assert interval(clusters=np.arange(400)) == interval()
    assert interval(weights=np.full(400, 7.0)) == interval()


def test_an_item_of_weight_w_is_w_equal_items_of_one_cluster() -> None:
    weights = np.random.default_rng(5).integers(1, 4, 400)
    weighted = weighted_quantile(TARGET, 0.95, weights=weights.astype(float))
    assert weighted == pytest.approx(np.quantile(np.repeat(TARGET, weights), 0.95), rel=0.01)
    found = interval(weights=weights.astype(float))
    clusters = np.repeat(np.arange(400), weights)
    repeated = interval(np.repeat(TARGET, weights), np.repeat(LEGACY, weights), clusters=clusters)
    assert (found.lower, found.upper) == pytest.approx((repeated.lower, repeated.upper), abs=5)


def test_the_weighted_quantile_is_numpys_where_all_weigh_the_same() -> None:
    for quantile in (0.05, 0.5, 0.95):
        assert weighted_quantile(TARGET, quantile) == pytest.approx(np.quantile(TARGET, quantile))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clusters": np.arange(400) % 9}, "400 pairs in 9 clusters, which count like 9.0; 10 are needed"),
        ({"weights": np.r_[np.ones(399), 1e6]}, "400 pairs in 400 clusters, which count like 1.0; 10 are needed"),
        ({"weights": np.r_[np.ones(380), np.full(20, 100.0)]}, r"400 pairs count like \d+ independent, equal ones"),
    ],
)
def test_few_conversations_and_heavy_items_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TooFewPairs, match=words):
        interval(**change)


def test_five_observations_beyond_the_quantile_are_enough() -> None:
    assert interval(TARGET[:100], LEGACY[:100]).lower < interval(TARGET[:100], LEGACY[:100]).upper


@pytest.mark.parametrize(("n", "quantile", "needed"), [(99, 0.95, 100), (400, 0.99, 500), (99, 0.05, 100)])
def test_too_short_a_tail_is_refused(n: int, quantile: float, needed: int) -> None:
    with pytest.raises(TooFewPairs, match=f"{n} pairs for the {quantile} quantile; at least {needed}"):
        interval(TARGET[:n], LEGACY[:n], quantile=quantile)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"legacy": LEGACY[:-1]}, "shape"),
        ({"target": np.r_[TARGET[:-1], np.nan]}, "NaN or infinite"),
        ({"legacy": np.r_[LEGACY[:-1], np.inf]}, "NaN or infinite"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"level": 0.0}, "level is 0.0"),
        ({"resamples": 99}, "99 resamples"),
    ],
)
def test_what_would_mislead_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interval(**change)


def unpaired(target: Any = TARGET, legacy: Any = LEGACY, **change: Any) -> Any:
    options: dict[str, Any] = {"quantile": 0.95, "level": 0.9, "rng": np.random.default_rng(7), "resamples": 20_000}
    return unpaired_quantile_difference(target, legacy, **(options | change))


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.987])
def test_ranks_drawn_are_resamples_drawn(quantile: float) -> None:
    rng = np.random.default_rng(9)
    target, legacy = TARGET, LEGACY[:390]
    arms = [
        np.quantile(arm[rng.integers(0, arm.size, size=(20_000, arm.size))], quantile, axis=1)
        for arm in (target, legacy)
    ]
    drawn = arms[0] - arms[1]
    found = unpaired(target, legacy, quantile=quantile)
    assert found.estimate == pytest.approx(np.quantile(target, quantile) - np.quantile(legacy, quantile))
    assert (found.lower, found.upper) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.02 * np.ptp(drawn))


def test_unpaired_bounds_miss_about_as_rarely_as_they_say() -> None:
    rng, misses = np.random.default_rng(3), np.zeros(2)
    truth = (math.exp(0.1) - 1) * math.exp(0.5 * 1.644854)
    for _ in range(400):
        target, legacy = np.exp(0.1 + 0.5 * rng.normal(size=300)), np.exp(0.5 * rng.normal(size=200))
        found = unpaired(target, legacy, rng=rng, resamples=1000)
        misses += [found.upper < truth, found.lower > truth]
    assert (misses / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400) + 0.02).all()


def test_a_million_requests_are_compared_at_once() -> None:
    target, legacy = np.arange(1_000_000.0), np.arange(500_000.0) * 2
    found = unpaired(target + 50, legacy, quantile=0.99)
    assert found.lower < 50 < found.upper
    assert found.upper - found.lower < 1500


def test_an_arm_with_too_short_a_tail_is_refused() -> None:
    with pytest.raises(TooFewPairs, match=r"99 values in an arm for the 0\.95 quantile"):
        unpaired(legacy=LEGACY[:99])
    with pytest.raises(ValueError, match="NaN or infinite"):
        unpaired(np.r_[TARGET, np.nan])
