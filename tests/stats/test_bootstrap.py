"""The bootstrap is SciPy's where SciPy has one, keeps clusters whole and says when it knows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.bootstrap import bootstrap_difference, bootstrap_ratio

RNG = np.random.default_rng(5)
LEGACY = RNG.beta(6, 2, size=60)
TARGET = np.clip(LEGACY + RNG.normal(0.03, 0.15, size=60), 0, 1)


def bounds(interval: Any) -> tuple[float, float]:
    return interval.lower, interval.upper


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("ratio", [False, True])
def test_single_items_agree_with_scipy_draw_for_draw(ratio: bool) -> None:
    def statistic(target: Any, legacy: Any, axis: int = -1) -> Any:
        means = target.mean(axis), legacy.mean(axis)
        return means[0] / means[1] if ratio else means[0] - means[1]

    theirs = stats.bootstrap(
        (TARGET, LEGACY), statistic, paired=True, vectorized=True, n_resamples=2000, method="BCa", rng=rng()
    ).confidence_interval
    ours = (bootstrap_ratio if ratio else bootstrap_difference)(TARGET, LEGACY, level=0.95, rng=rng(), resamples=2000)
    assert bounds(ours) == pytest.approx(tuple(theirs), abs=1e-10)


def test_clusters_agree_with_scipy_on_their_sums() -> None:
    clusters = np.arange(60) // 3
    sums = [np.bincount(clusters, weights=scores) for scores in (TARGET - LEGACY, np.ones(60))]
    theirs = stats.bootstrap(
        sums,
        lambda total, size, axis=-1: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        rng=rng(),
    ).confidence_interval
    ours = bootstrap_difference(TARGET, LEGACY, clusters=clusters, level=0.95, rng=rng(), resamples=2000)
    assert bounds(ours) == pytest.approx(tuple(theirs), abs=1e-10)


def test_weights_are_those_of_the_estimate_and_their_scale_does_not_matter() -> None:
    weights = RNG.uniform(0.5, 4, size=60)
    ours = bootstrap_difference(TARGET, LEGACY, weights=weights, level=0.9, rng=rng())
    scaled = bootstrap_difference(TARGET, LEGACY, weights=weights * 10, level=0.9, rng=rng())
    assert ours.estimate == pytest.approx(np.average(TARGET - LEGACY, weights=weights))
    assert bounds(ours) == pytest.approx(bounds(scaled))
    assert bootstrap_ratio(TARGET, LEGACY, weights=weights, level=0.9, rng=rng()).estimate == pytest.approx(
        weights @ TARGET / (weights @ LEGACY)
    )


def test_an_item_of_weight_two_is_a_cluster_of_two_alike() -> None:
    weights = np.r_[np.full(20, 2.0), np.ones(40)]
    repeats = np.repeat(np.arange(60), weights.astype(int))
    weighted = bootstrap_difference(TARGET, LEGACY, weights=weights, level=0.9, rng=rng())
    repeated = bootstrap_difference(TARGET[repeats], LEGACY[repeats], clusters=repeats, level=0.9, rng=rng())
    assert bounds(weighted) == pytest.approx(bounds(repeated))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    first, again, other = (bootstrap_ratio(TARGET, LEGACY, level=0.9, rng=rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_whole_clusters_are_covered_and_single_turns_are_not() -> None:
    generator, clusters, covered = rng(3), np.repeat(np.arange(60), 5), np.zeros(2)
    for _ in range(100):
        legacy = generator.uniform(0.4, 0.6, size=300)
        target = legacy + generator.uniform(-0.3, 0.3, size=60)[clusters]
        for kind, labels in enumerate((clusters, None)):
            found = bootstrap_difference(target, legacy, clusters=labels, level=0.95, rng=generator, resamples=1000)
            covered[kind] += found.lower <= 0 <= found.upper
    assert covered[0] / 100 > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100)
    assert covered[1] / 100 < 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": np.ones(59)}, r"weights have shape \(59,\)"),
        ({"weights": np.zeros(60)}, "finite weights above 0 are needed"),
        ({"level": 1.0}, "level is 1.0"),
        ({"resamples": 999}, "999 resamples"),
        ({"legacy": LEGACY[:-1]}, "60 target scores for 59"),
        ({"target": np.r_[TARGET[:-1], np.nan]}, "NaN"),
    ],
)
def test_what_would_mislead_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"target": TARGET, "legacy": LEGACY, "level": 0.9, "rng": rng()} | change
    with pytest.raises(ValueError, match=words):
        bootstrap_difference(**given)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(TooFewPairs, match="9 pairs"):
        bootstrap_difference(TARGET[:9], LEGACY[:9], level=0.9, rng=rng())
    with pytest.raises(TooFewPairs, match="all 60 clusters are alike"):
        bootstrap_difference(np.ones(60), np.ones(60), level=0.9, rng=rng())
    with pytest.raises(TooFewPairs, match="draws hold no legacy score above 0"):
        bootstrap_ratio(TARGET, np.eye(60)[0], level=0.9, rng=rng())
