from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.stats.sample_ratio import PRIOR_WEIGHT, SampleRatio

ARMS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=5)


@pytest.mark.parametrize(("counts", "shares"), [((52, 48), (0.5, 0.5)), ((900, 70, 30), (0.9, 0.05, 0.05))])
def test_evidence_agrees_with_scipy_s_dirichlet_multinomial(counts: tuple[int, ...], shares: tuple[float, ...]) -> None:
    found = SampleRatio(shares=shares).update(counts).log_evidence
    alternative = stats.dirichlet_multinomial.logpmf(counts, PRIOR_WEIGHT * np.array(shares), [sum(counts)])
    null = stats.multinomial.logpmf(counts, sum(counts), shares)
    assert found == pytest.approx(float(np.squeeze(alternative - null)), abs=1e-8)


def test_one_assignment_is_no_evidence_and_a_second_is_worked_by_hand() -> None:
    # The first has the chance of one half under both; the second like the first, 501 / 1,001 against 1 / 2.
    state = SampleRatio(shares=(0.5, 0.5)).update([1, 0])
    assert state.log_evidence == pytest.approx(0, abs=1e-9)
    assert state.update([1, 0]).log_evidence == pytest.approx(math.log(501 / 1001 / 0.5), abs=1e-9)


@given(ARMS)
def test_batches_add_up_and_the_p_value_never_rises(batches: list[tuple[int, int]]) -> None:
    state, p_values = SampleRatio(shares=(0.3, 0.7)), [1.0]
    for batch in batches:
        state = SampleRatio.from_json(state.to_json()).update(batch)
        p_values.append(state.p_value)
    assert state.counts == tuple(np.sum(batches, axis=0).tolist())
    assert p_values == sorted(p_values, reverse=True)
    assert 0 <= p_values[-1] <= 1


def test_evidence_is_a_martingale_also_across_a_change_of_shares() -> None:
    before = SampleRatio(shares=(0.05, 0.95)).update([9, 91]).assigned((0.25, 0.75)).update([30, 70])
    after = [math.exp(before.update(counts).log_evidence) for counts in ([1, 0], [0, 1])]
    assert 0.25 * after[0] + 0.75 * after[1] == pytest.approx(math.exp(before.log_evidence), rel=1e-9)


def test_new_shares_alone_are_no_evidence() -> None:
    before = SampleRatio(shares=(0.05, 0.95)).update([60, 940])
    after = before.assigned((0.5, 0.5))
    assert after.log_evidence == before.log_evidence
    assert after.p_value == before.p_value
    assert after.counts == (0, 0)


def test_looking_after_every_batch_errs_no_more_often_than_the_level_and_a_chi_square_test_does() -> None:
    rng, streams, batch = np.random.default_rng(31), 100, 200
    wrong = naive = 0
    for _ in range(streams):
        state = SampleRatio(shares=(0.05, 0.95))
        targets = rng.binomial(batch, np.repeat([0.05, 0.25], 25))
        for look, target in enumerate(targets.tolist()):
            state = (state.assigned((0.25, 0.75)) if look == 25 else state).update([target, batch - target])
        wrong += state.p_value < 0.05
        seen = np.cumsum(targets[:25])
        n = batch * np.arange(1, 26)
        naive += bool((np.abs(seen - 0.05 * n) > 1.96 * np.sqrt(n * 0.05 * 0.95)).any())
    assert wrong <= stats.binom.ppf(0.999, streams, 0.05)
    assert naive > 0.15 * streams


def test_six_percent_where_five_were_assigned_are_found_within_20_000() -> None:
    assert SampleRatio(shares=(0.05, 0.95)).update([1_200, 18_800]).p_value < 0.001
    assert SampleRatio(shares=(0.05, 0.95)).update([1_000, 19_000]).p_value > 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SampleRatio(shares=(1.0,)), "two or more"),
        (lambda: SampleRatio(shares=(0.0, 1.0)), "above 0"),
        (lambda: SampleRatio(shares=(0.5, 0.6)), "add up to 1"),
        (lambda: SampleRatio(shares=(math.nan, 0.5)), "shares are"),
        (lambda: SampleRatio(shares=(0.5, 0.5)).update([1]), "2 whole numbers from 0 up"),
        (lambda: SampleRatio(shares=(0.5, 0.5)).update([1, -1]), "2 whole numbers from 0 up"),
        (lambda: SampleRatio(shares=(0.5, 0.5)).update([1.0, 2.0]), "2 whole numbers from 0 up"),
        (lambda: SampleRatio(shares=(0.5, 0.5)).update([]), "2 whole numbers from 0 up"),
        (lambda: SampleRatio(shares=(0.5, 0.5)).assigned((0.2, 0.3, 0.5)), "3 shares for 2 arms"),
    ],
)
def test_what_is_no_assignment_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
