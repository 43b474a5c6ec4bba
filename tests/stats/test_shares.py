"""The comparison of shares: known values, independent implementations, error rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.stats.shares import FloatArray, ShareComparison, compare_shares


def compare(first: list[float], second: list[float], **changes: Any) -> ShareComparison:
    settings: dict[str, Any] = {"design_effects": (1.0, 1.0), "detectable": 0.1, "level": 0.01} | changes
    return compare_shares(np.array(first, float), np.array(second, float), **settings)


def test_a_case_by_hand() -> None:
    found = compare([60, 40], [40, 60])
    assert found.distance == pytest.approx(0.2)
    # G = 2 (120 ln 1.2 + 80 ln 0.8) = 8.0543 on one degree of freedom.
    assert found.p_difference == pytest.approx(stats.chi2.sf(2 * (120 * np.log(1.2) + 80 * np.log(0.8)), 1), rel=1e-12)


@given(st.lists(st.tuples(st.integers(10, 400), st.integers(10, 400)), min_size=2, max_size=8))
def test_it_agrees_with_scipys_g_test_where_nothing_is_pooled(counts: list[tuple[int, int]]) -> None:
    table = np.array(counts, float).T
    reference = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    if reference.expected_freq.min() >= 5:
        found = compare_shares(table[0], table[1], design_effects=(1, 1), detectable=0.1, level=0.01)
        assert found.p_difference == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)


def test_rare_categories_are_pooled_and_still_compared() -> None:
    found = compare([500, 4, 3, 2], [500, 0, 0, 4])
    assert found.method.startswith("G-test over 2 categories")
    assert 0 < found.p_difference <= 1


def test_one_category_says_nothing() -> None:
    assert compare([50], [60])[:3] == (1.0, 0.0, 0.0)


def test_calls_of_one_conversation_do_not_count_as_independent() -> None:
    alone, both = compare([60, 40], [40, 60]), compare([60, 40], [40, 60], design_effects=(4, 4))
    one = compare([60, 40], [40, 60], design_effects=(4, 1))
    assert alone.p_difference < one.p_difference < both.p_difference
    assert alone.power > one.power > both.power
    assert one.p_difference == pytest.approx(compare([15, 10], [40, 60]).p_difference)


@pytest.mark.parametrize(
    ("first", "second", "changes", "message"),
    [
        ([1, 2], [1], {}, "of the same shape"),
        ([0, 0], [1, 2], {}, "a sample is empty"),
        ([], [], {}, "a sample is empty"),
        ([1, float("nan")], [1, 2], {}, "NaN"),
        ([1, -1], [1, 2], {}, "negative"),
        ([1, 2], [1, 2], {"design_effects": (1.0, 0.5)}, r"design_effects are \(1.0, 0.5\)"),
        ([1, 2], [1, 2], {"detectable": 0.0}, "detectable 0.0"),
        ([1, 2], [1, 2], {"level": float("nan")}, "level nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: list[float], second: list[float], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(first, second, **changes)


def draws(shares: FloatArray, calls: int, times: int, rng: np.random.Generator) -> FloatArray:
    return rng.multinomial(calls, shares, size=times).astype(float)


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.2], [0.9, 0.05, 0.03, 0.015, 0.005]])
def test_equal_traffic_is_found_different_at_the_level(shares: list[float]) -> None:
    rng, p = np.random.default_rng(1), np.array(shares)
    pairs = zip(draws(p, 800, 1500, rng), draws(p, 600, 1500, rng), strict=True)
    found = [compare(list(a), list(b), level=0.05).p_difference for a, b in pairs]
    assert 0.03 < np.mean(np.array(found) < 0.05) < 0.07  # +- 3.6 standard errors of 1,500 draws


def test_the_stated_power_is_the_least_that_a_shift_of_that_distance_has() -> None:
    rng, before = np.random.default_rng(2), np.array([0.4, 0.3, 0.2, 0.1])
    after = before + np.array([-0.1, 0.1, 0, 0])
    pairs = zip(draws(before, 900, 600, rng), draws(after, 900, 600, rng), strict=True)
    found = [compare(list(a), list(b)) for a, b in pairs]
    assert np.mean([each.p_difference < 0.01 for each in found]) > found[0].power > 0.8


def test_the_stated_power_counts_the_categories_that_are_left_after_pooling() -> None:
    rng, before = np.random.default_rng(3), np.array([0.5, 0.49, 0.004, 0.003, 0.003])
    after = before + np.array([-0.1, 0.1, 0, 0, 0])
    pairs = zip(draws(before, 600, 600, rng), draws(after, 600, 600, rng), strict=True)
    found = [compare(list(a), list(b)) for a, b in pairs]
    pooled = [each for each in found if each.method.startswith("G-test over 3 categories")]
    assert len(pooled) > 300
    assert np.mean([each.p_difference < 0.01 for each in pooled]) > max(each.power for each in pooled) - 0.05
