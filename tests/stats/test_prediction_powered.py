"""Few human labels correct many judge scores, as in the authors' package, and small samples are not overconfident."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.prediction_powered import (
    MIN_LABELS,
    Judged,
    prediction_powered_difference,
    prediction_powered_mean,
)

LABELLED, REST = np.arange(40), np.arange(300)


def flipped(scores: Any, every: int) -> Any:
    scores = np.asarray(scores, dtype=float)
    scores[::every] = 1 - scores[::every]
    return scores


ARM = Judged(flipped((LABELLED * 7 % 11) >= 4, 9), (LABELLED * 7 % 11) / 10, (REST * 13 % 17) / 16)
TARGET = Judged(flipped((LABELLED * 5 % 7) / 6 > 0.3, 8), (LABELLED * 5 % 7) / 6, (REST * 5 % 7) / 6)
LEGACY = Judged(flipped((LABELLED * 3 % 8) / 7 > 0.4, 7), (LABELLED * 3 % 8) / 7, (REST * 3 % 8) / 7)
WEIGHTS = np.asarray(1.0 + LABELLED % 5, dtype=np.float64)

# ppi_mean_pointestimate and ppi_mean_ci of ppi-python 0.2.3, the authors' package, which needs numba and llvmlite.
PACKAGE = {
    "plain": (0.5953923941046091, 0.46858864735736805, 0.7221961408518501, 0.95),
    "weighted": (0.5604166666666667, 0.4285619482366023, 0.692271385096731, 0.95),
    "difference": (0.05111664675944825, -0.07774679070032986, 0.17998008421922634, 0.9),
}


@pytest.mark.parametrize("case", PACKAGE)
def test_it_agrees_with_the_authors_package(case: str) -> None:
    estimate, lower, upper, level = PACKAGE[case]
    if case == "difference":
        found = prediction_powered_difference(TARGET, LEGACY, level=level)
    else:
        found = prediction_powered_mean(ARM, weights=WEIGHTS if case == "weighted" else None, level=level)
    # Theirs has the normal quantile and variances by n, ours t with 39 degrees of freedom and n / (n - 1).
    wider = stats.t.ppf((1 + level) / 2, 39) / stats.norm.ppf((1 + level) / 2) * math.sqrt(40 / 39)
    assert found.estimate == pytest.approx(estimate, abs=1e-9)
    assert found.upper - found.estimate == pytest.approx((upper - lower) / 2 * wider, abs=1e-9)


def test_a_judge_without_information_leaves_the_mean_of_the_labels() -> None:
    found = prediction_powered_mean(Judged(ARM.human, np.full(40, 0.5), np.full(300, 0.5)), level=0.95)
    expected = stats.ttest_1samp(ARM.human, 0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx(tuple(expected))
    assert "lambda 0.000" in found.method


def test_labels_worked_by_hand() -> None:
    # lambda = 0.25 / (1.1 x variance of all 440 judge scores) is cut to 1; the corrections are 0.
    human = np.tile([0.0, 1.0], 20)
    rest = np.tile([0.0, 1.0, 1.0, 1.0], 100)
    tuning = 0.25 / (1.1 * np.r_[human, rest].var(ddof=1))
    found = prediction_powered_mean(Judged(human, human, rest), level=0.9)
    assert tuning > 1
    assert found.estimate == pytest.approx(0.75)


def test_a_judge_that_never_erred_is_not_taken_for_perfect() -> None:
    human = np.tile([0.0, 1.0, 1.0, 1.0], 10)
    found = prediction_powered_mean(Judged(human, human, np.tile(human, 500)), level=0.95)
    assert found.upper - found.estimate > 1 - 0.025 ** (1 / 40) - 1e-12


def test_it_covers_and_is_narrower_than_labels_alone() -> None:
    rng, covered, halves, alone = np.random.default_rng(2), 0, [], []
    for _ in range(400):
        human = (rng.random(1060) < 0.7).astype(float)
        judge = np.where(rng.random(1060) < 0.9, human, 1 - human)
        found = prediction_powered_mean(Judged(human[:60], judge[:60], judge[60:]), level=0.95)
        covered += found.lower <= 0.7 <= found.upper
        halves.append(found.upper - found.estimate)
        alone.append(stats.t.ppf(0.975, 59) * human[:60].std(ddof=1) / math.sqrt(60))
    assert covered / 400 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)
    assert np.mean(halves) < 0.8 * np.mean(alone)


def test_labels_drawn_from_failures_mislead_without_their_weights() -> None:
    rng, errors = np.random.default_rng(4), np.zeros(2)
    for _ in range(200):
        human = (rng.random(2000) < 0.8).astype(float)
        judge = np.where(rng.random(2000) < 0.85, human, 1 - human)
        chance = np.where(judge == 1, 0.05, 0.3)
        drawn = rng.random(2000) < chance
        arm = Judged(human[drawn], judge[drawn], judge)
        weighted = prediction_powered_mean(arm, weights=1 / chance[drawn], level=0.95)
        errors += [weighted.estimate - 0.8, prediction_powered_mean(arm, level=0.95).estimate - 0.8]
    assert abs(errors[0] / 200) < 0.01
    assert abs(errors[1] / 200) > 0.03


@pytest.mark.parametrize(
    ("arm", "change", "words"),
    [
        (ARM._replace(judge=ARM.judge[:-1]), {}, "judge \\(39,\\)"),
        (ARM._replace(human=np.r_[ARM.human[:-1], np.nan]), {}, "human holds a score that is NaN"),
        (ARM._replace(judge_only=ARM.judge_only * 2), {}, "judge_only holds a score"),
        (ARM, {"level": 0.0}, "level is 0.0"),
        (ARM, {"weights": np.zeros(40)}, "finite weight above 0"),
        (ARM, {"weights": np.ones(39)}, "finite weight above 0"),
    ],
)
def test_what_would_mislead_is_refused(arm: Judged, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prediction_powered_mean(arm, **({"level": 0.95} | change))


def test_few_labels_and_arms_on_other_items_are_refused() -> None:
    short = Judged(ARM.human[:39], ARM.judge[:39], ARM.judge_only)
    with pytest.raises(TooFewPairs, match=f"39 labelled .* at least {MIN_LABELS}"):
        prediction_powered_mean(short, level=0.95)
    with pytest.raises(ValueError, match="the same items are needed in both"):
        prediction_powered_difference(TARGET, LEGACY._replace(judge_only=LEGACY.judge_only[:-1]), level=0.95)
