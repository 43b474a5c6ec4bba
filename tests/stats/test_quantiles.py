from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.quantiles import paired_quantile_difference, unpaired_quantile_difference

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
    assert (found.lower, found.upper) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.06 * np.ptp(drawn))


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
    # 5 % on each side, 3 Monte Carlo errors, and the documented 2 points of a percentile bootstrap in a short tail.
    assert (misses / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200) + 0.02).all()


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
