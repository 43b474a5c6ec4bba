from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from anven_pipelines.stats.proportions import (
    clopper_pearson_interval,
    failure_bound,
    mcnemar_exact,
    trials_without_failure,
    unpaired_difference_interval,
    wilson_interval,
)

COUNTS = st.integers(0, 300)


def test_a_table_worked_by_hand() -> None:
    # One of five: 2 x (1 + 5) / 32, and by half of the observed table 2 x (1 + 5 / 2) / 32.
    assert mcnemar_exact(4, 1) == pytest.approx(12 / 32)
    assert mcnemar_exact(4, 1, claim="more lost") == pytest.approx(6 / 32)
    assert mcnemar_exact(4, 1, claim="more gained") == pytest.approx(31 / 32)
    assert mcnemar_exact(4, 1, mid_p=True) == pytest.approx(7 / 32)


def test_no_discordant_pair_proves_nothing() -> None:
    assert mcnemar_exact(0, 0) == mcnemar_exact(0, 0, claim="more lost") == mcnemar_exact(0, 0, mid_p=True) == 1
    assert mcnemar_exact(0, 0, claim="more gained", mid_p=True) == 0.5


@settings(max_examples=40, deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_agrees_with_statsmodels(lost: int, gained: int) -> None:
    assert mcnemar_exact(lost, gained) == pytest.approx(float(mcnemar([[5, lost], [gained, 5]], exact=True).pvalue))


@given(COUNTS, COUNTS, st.booleans())
def test_swapping_the_arms_swaps_the_claims(lost: int, gained: int, mid_p: bool) -> None:
    assert mcnemar_exact(lost, gained, mid_p=mid_p) == mcnemar_exact(gained, lost, mid_p=mid_p)
    swapped = mcnemar_exact(gained, lost, claim="more gained", mid_p=mid_p)
    assert mcnemar_exact(lost, gained, claim="more lost", mid_p=mid_p) == swapped


@pytest.mark.parametrize("total", [5, 20, 101])
def test_mcnemar_errs_no_more_often_than_the_level(total: int) -> None:
    chance = np.asarray(stats.binom.pmf(np.arange(total + 1), total, 0.5))
    for claim in ("differ", "more lost", "more gained"):
        errors = sum(chance[k] for k in range(total + 1) if mcnemar_exact(k, total - k, claim=claim) < 0.05)
        assert errors <= 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_intervals_agree_with_statsmodels(counts: tuple[int, int], level: float) -> None:
    for ours, method in ((wilson_interval, "wilson"), (clopper_pearson_interval, "beta")):
        interval = ours(*counts, level=level)
        theirs = proportion_confint(*counts, alpha=1 - level, method=method)
        assert (interval.lower, interval.upper) == pytest.approx(theirs, abs=1e-9)


def test_wilson_without_a_success_is_known_in_closed_form() -> None:
    interval = wilson_interval(0, 20, level=0.95)
    assert interval.estimate == 0
    assert interval.upper == pytest.approx(1.959964**2 / (20 + 1.959964**2), rel=1e-6)


def test_clopper_pearson_covers_every_proportion() -> None:
    n = 25
    bounds = [clopper_pearson_interval(k, n, level=0.9) for k in range(n + 1)]
    for share in (0.01, 0.1, 0.33, 0.5, 0.9, 0.99):
        covered = sum(stats.binom.pmf(k, n, share) for k in range(n + 1) if bounds[k].lower <= share <= bounds[k].upper)
        assert covered >= 0.9


@pytest.mark.parametrize(
    ("successes", "n", "level", "words"),
    [
        (1, 0, 0.95, "1 successes in 0 trials"),
        (-1, 5, 0.95, "-1 successes in 5 trials"),
        (6, 5, 0.95, "6 successes in 5 trials"),
        (1, 5, 1.0, "level is 1.0"),
        (1, 5, math.nan, "level is nan"),
    ],
)
def test_impossible_counts_are_refused(successes: int, n: int, level: float, words: str) -> None:
    for interval in (wilson_interval, clopper_pearson_interval):
        with pytest.raises(ValueError, match=words):
            interval(successes, n, level=level)


def test_negative_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 lost and 3 gained"):
        mcnemar_exact(-1, 3)


def test_no_failure_leaves_about_three_over_n_possible() -> None:
    assert failure_bound(0, 300, level=0.95) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert failure_bound(0, 300, level=0.95) == pytest.approx(3 / 300, rel=0.01)
    assert failure_bound(5, 5, level=0.95) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_failure_bound_agrees_with_scipy(counts: tuple[int, int]) -> None:
    theirs = stats.binomtest(*counts, alternative="less").proportion_ci(0.95, method="exact").high
    assert failure_bound(*counts, level=0.95) == pytest.approx(theirs, abs=1e-9)


@given(st.floats(1e-4, 0.9), st.floats(0.5, 0.999))
def test_that_many_trials_without_failure_are_just_enough(rate: float, level: float) -> None:
    n = trials_without_failure(rate, level=level)
    assert failure_bound(0, n, level=level) <= rate * (1 + 1e-6)
    assert n == 1 or failure_bound(0, n - 1, level=level) > rate * (1 - 1e-6)


def test_a_difference_of_independent_shares_is_newcombes() -> None:
    # Newcombe (1998), table II, method 10: 56/70 and 48/80.
    found = unpaired_difference_interval(56, 70, 48, 80, level=0.95)
    assert (found.lower, found.upper) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@settings(max_examples=30, deadline=None)
@given(
    *[st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))] * 2, st.sampled_from([0.9, 0.95])
)
def test_it_agrees_with_statsmodels(target: tuple[int, int], legacy: tuple[int, int], level: float) -> None:
    found = unpaired_difference_interval(*target, *legacy, level=level)
    theirs = confint_proportions_2indep(*target, *legacy, method="newcomb", alpha=1 - level)
    assert (found.lower, found.upper) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("rate", "level", "words"), [(0.0, 0.95, "rate is 0.0"), (0.1, 1.0, "level is 1.0")])
def test_a_bound_that_no_trial_can_prove_is_refused(rate: float, level: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trials_without_failure(rate, level=level)


def test_more_failures_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="3 failures in 2 trials"):
        failure_bound(3, 2, level=0.95)
