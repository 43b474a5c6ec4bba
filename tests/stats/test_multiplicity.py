from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from anven_pipelines.stats.multiplicity import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_three_tests_worked_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert benjamini_hochberg([0.04, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_both_agree_with_statsmodels(count: int) -> None:
    # Few cases: statsmodels collects garbage in each call.
    p_values = np.random.default_rng(count).random(count).round(1) ** 2
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert benjamini_hochberg(p_values) == pytest.approx(multipletests(p_values, method="fdr_bh")[1])


@given(P_VALUES, st.integers(0, 2**32))
def test_order_does_not_matter(p_values: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p_values))
    assert holm(np.array(p_values)[order]) == pytest.approx(holm(p_values)[order])


@given(P_VALUES)
def test_no_p_value_shrinks_and_holm_is_the_stricter(p_values: list[float]) -> None:
    assert (benjamini_hochberg(p_values) >= np.array(p_values) - 1e-12).all()
    assert (holm(p_values) >= benjamini_hochberg(p_values) - 1e-12).all()
    assert (holm(p_values) <= 1).all()


def test_one_true_claim_among_false_ones_keeps_the_error_rate_of_the_family() -> None:
    rng = np.random.default_rng(1)
    p_values = rng.random((4000, 8))
    errors = sum((holm(row) < 0.05).any() for row in p_values) / 4000
    assert errors <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert ((p_values < 0.05).any(axis=1)).mean() > 0.3


def test_no_tests_need_no_adjustment() -> None:
    assert holm([]).size == benjamini_hochberg([]).size == 0


def test_the_given_p_values_stay_as_they_are() -> None:
    given_values = np.array([0.04, 0.01])
    holm(given_values)
    assert given_values.tolist() == [0.04, 0.01]


@pytest.mark.parametrize("bad", [[0.1, float("nan")], [-0.1], [1.1]])
def test_a_p_value_that_is_none_is_refused(bad: list[float]) -> None:
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(ValueError, match="NaN or outside"):
            adjust(bad)


def test_a_table_of_p_values_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        holm(np.ones((2, 2)))
