"""Kappa agrees with statsmodels; a rate is corrected for the rater's errors as Rogan, Gladen, Lang and Reiczigel do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.agreement import Share, Weighting, corrected_rate, kappa_interval, tabulate

TABLE = np.array([[53, 5, 2], [11, 14, 5], [1, 6, 3]])  # 100 items, made up


def test_a_table_worked_by_hand() -> None:
    # Observed 0.70, expected 0.65 x 0.60 + 0.25 x 0.30 + 0.10 x 0.10 = 0.475.
    assert kappa_interval(TABLE, level=0.95).estimate == pytest.approx((0.70 - 0.475) / (1 - 0.475))


@pytest.mark.parametrize(
    ("weighting", "name"), [("unweighted", None), ("linear", "linear"), ("quadratic", "quadratic")]
)
@pytest.mark.parametrize("seed", range(4))
def test_kappa_and_its_error_agree_with_statsmodels(weighting: Weighting, name: str | None, seed: int) -> None:
    table = TABLE if seed == 0 else np.random.default_rng(seed).integers(1, 40, size=(4, 4))
    theirs = cohens_kappa(table, wt=name)
    ours = kappa_interval(table, weighting=weighting, level=0.95)
    assert ours.estimate == pytest.approx(theirs.kappa, abs=1e-9)
    assert (ours.lower, ours.upper) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=25, max_size=60))
def test_kappa_lies_in_its_interval_and_swapping_the_raters_changes_nothing(ratings: list[tuple[int, int]]) -> None:
    first, second = np.array(ratings).T
    table = tabulate(first, second, categories=[0, 1, 2])
    if (table.sum(axis=0) * table.sum(axis=1)).max() == len(ratings) ** 2:
        return  # one category only: refused, see below
    there, back = kappa_interval(table, level=0.9), kappa_interval(table.T, level=0.9)
    assert -1 <= there.lower <= there.estimate <= there.upper <= 1
    assert there.lower == pytest.approx(back.lower)


def test_raters_who_never_disagreed_may_still_do_so() -> None:
    found = kappa_interval(np.diag([30, 30]), level=0.95)
    assert found.upper == found.estimate == 1
    # At most 1 - 0.025^(1/60) = 6 % disagree, and half would agree by chance.
    assert found.lower == pytest.approx(1 - (1 - 0.025 ** (1 / 60)) / 0.5)


def test_kappa_covers_as_promised() -> None:
    shares, rng, covered = np.array([[0.55, 0.08], [0.07, 0.30]]), np.random.default_rng(1), 0
    expected = 0.63 * 0.62 + 0.37 * 0.38
    truth = (0.85 - expected) / (1 - expected)
    for counts in rng.multinomial(80, shares.ravel(), size=1000):
        found = kappa_interval(counts.reshape(2, 2), level=0.95)
        covered += found.lower <= truth <= found.upper
    assert 0.93 < covered / 1000 < 0.975


def test_ratings_are_counted_in_the_order_of_the_scale() -> None:
    table = tabulate(["bad", "good", "good"], ["good", "good", "bad"], categories=["good", "bad"])
    assert table.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [(["good"], ["good", "bad"], "same items"), (["good"], ["ugly"], "ugly is none of the categories")],
)
def test_ratings_that_do_not_match_are_refused(first: list[str], second: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tabulate(first, second, categories=["good", "bad"])


@pytest.mark.parametrize(
    ("table", "level", "words"),
    [
        (TABLE[:2], 0.95, "shape \\(2, 3\\)"),
        (TABLE / 2, 0.95, "float64 values"),
        (-TABLE, 0.95, "the least -53"),
        (TABLE, math.nan, "level is nan"),
    ],
)
def test_a_table_that_is_none_is_refused(table: Any, level: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kappa_interval(table, level=level)


def test_too_few_or_only_one_kind_of_items_are_refused() -> None:
    with pytest.raises(TooFewPairs, match="19 items"):
        kappa_interval(np.array([[10, 0], [0, 9]]), level=0.95)
    with pytest.raises(TooFewPairs, match="one category"):
        kappa_interval(np.array([[50, 0], [0, 0]]), level=0.95)


def test_the_rogan_gladen_estimate_worked_by_hand() -> None:
    # (0.30 + 0.90 - 1) / (0.80 + 0.90 - 1) = 2 / 7.
    found = corrected_rate(Share(60, 200), sensitivity=Share(80, 100), specificity=Share(90, 100), level=0.95)
    assert found.estimate == pytest.approx(2 / 7)
    assert found.lower < 2 / 7 < found.upper


def test_the_interval_is_that_of_lang_and_reiczigel_written_out() -> None:
    z = 1.959963984540054
    p, se, sp = (60 + z**2 / 2) / (200 + z**2), 81 / 102, 91 / 102
    rate = (p + sp - 1) / (se + sp - 1)
    v_se, v_sp = se * (1 - se) / 102, sp * (1 - sp) / 102
    spread = math.sqrt(p * (1 - p) / (200 + z**2) + rate**2 * v_se + (1 - rate) ** 2 * v_sp) / (se + sp - 1)
    middle = rate + 2 * z**2 * (rate * v_se - (1 - rate) * v_sp)
    found = corrected_rate(Share(60, 200), sensitivity=Share(80, 100), specificity=Share(90, 100), level=0.95)
    assert (found.lower, found.upper) == pytest.approx((middle - z * spread, middle + z * spread), abs=1e-9)


@pytest.mark.parametrize("truth", [0.02, 0.1, 0.7])
def test_the_corrected_rate_covers_where_the_measured_one_does_not(truth: float) -> None:
    rng, covered, naive = np.random.default_rng(6), 0, 0
    for _ in range(1000):
        called = int(rng.binomial(500, truth * 0.85 + (1 - truth) * 0.1))
        hits, correct = int(rng.binomial(80, 0.85)), int(rng.binomial(80, 0.9))
        found = corrected_rate(
            Share(called, 500), sensitivity=Share(hits, 80), specificity=Share(correct, 80), level=0.95
        )
        covered += found.lower <= truth <= found.upper
        naive += abs(called / 500 - truth) < 1.96 * math.sqrt(called / 500 * (1 - called / 500) / 500)
    assert covered / 1000 > 0.93
    assert naive / 1000 < 0.8


@pytest.mark.parametrize(
    ("positives", "sensitivity", "words"),
    [
        (Share(5, 0), Share(8, 10), "positives counts 5 of 0"),
        (Share(1, 5), Share(11, 10), "sensitivity counts 11 of 10"),
        (Share(1, 5), Share(1, 10), "errs like a coin"),
    ],
)
def test_impossible_counts_are_refused(positives: Share, sensitivity: Share, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        corrected_rate(positives, sensitivity=sensitivity, specificity=Share(9, 10), level=0.95)
