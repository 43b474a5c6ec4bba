from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.boundaries import beta_binomial_weight, plausible_counts
from anven_pipelines.stats.confidence_sequence import FloatArray, difference_of
from anven_pipelines.stats.quantile_sequence import PRECISION, SMALLEST, QuantileSequence

VALUES = st.lists(st.just(0.0) | st.floats(1e-3, 1e5), min_size=1, max_size=60)


def order_statistics(values: FloatArray, quantile: float, *, level: float) -> tuple[float, float]:
    """Bounds of theorem 1 on the sorted values themselves."""
    weight = beta_binomial_weight(1_000, 1 - level)
    fewest, most = plausible_counts(values.size, share=quantile, alpha=1 - level, weight=weight)
    ranked = np.sort(values)
    lower = float(ranked[fewest - 1]) if fewest else 0.0
    return lower, float(ranked[most]) if most < values.size else math.inf


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([0.05, 0.5, 0.95]))
def test_bounds_are_those_of_the_sorted_values_rounded_outwards_by_a_bin(values: list[float], quantile: float) -> None:
    found = QuantileSequence(quantile=quantile, level=0.5).update(values).bounds()
    lower, upper = order_statistics(np.array(values), quantile, level=0.5)
    slack = 1 + 1e-9
    assert lower / (1 + PRECISION) <= found.lower * slack
    assert found.lower <= lower * slack
    assert upper <= found.upper * slack
    assert found.upper <= max(upper * (1 + PRECISION), SMALLEST) * slack


def test_a_median_worked_by_hand() -> None:
    # 50 of 100, give or take 19.15 (confseq 0.0.11, t_opt = 1,000): the 31st value and the one after the 69th.
    state = QuantileSequence(quantile=0.5, n_opt=1_000).update(np.arange(100.0, 0.0, -1))
    assert (state.estimate, *state.bounds()) == pytest.approx((50, 31, 70), rel=PRECISION)


def test_the_upper_bound_is_open_until_the_tail_is_long_enough() -> None:
    rng = np.random.default_rng(1)
    state = QuantileSequence(quantile=0.95).update(rng.lognormal(6, 0.4, size=50))
    assert state.current().upper == math.inf
    assert state.running_upper is None
    assert state.update(rng.lognormal(6, 0.4, size=950)).current().upper < 1_200


@settings(max_examples=30, deadline=None)
@given(VALUES, st.integers(0, 60))
def test_how_a_stream_is_cut_changes_nothing_but_the_looks(values: list[float], cut: int) -> None:
    empty = QuantileSequence(quantile=0.5)
    first = empty.update(values[:cut])
    parts = QuantileSequence.from_json(first.to_json()).update(values[cut:])
    whole = empty.update(values)
    assert (parts.n, parts.bins, parts.counts) == (whole.n, whole.bins, whole.counts)
    assert sum(whole.counts) == whole.n == len(values)
    assert parts.bounds() == whole.bounds()


def test_looking_after_every_batch_errs_no_more_often_than_the_level_and_one_look_s_bounds_do() -> None:
    rng, streams, looks, truth = np.random.default_rng(2), 60, 12, math.exp(6 + 0.4 * 1.6448536)
    wrong = naive = 0
    for _ in range(streams):
        latencies, state = rng.lognormal(6, 0.4, size=(looks, 100)), QuantileSequence(quantile=0.95)
        for batch in latencies:
            state = state.update(batch)
        running = state.running()
        wrong += running is None or not running.lower <= truth <= running.upper
        below, n = np.cumsum((latencies <= truth).sum(1)), 100 * np.arange(1, looks + 1)
        naive += bool((np.abs(below - 0.95 * n) > 1.96 * np.sqrt(n * 0.95 * 0.05)).any())
    assert wrong <= stats.binom.ppf(0.999, streams, 0.05)
    assert naive > 0.1 * streams


def test_ties_and_gaps_are_covered() -> None:
    # Nine in ten answers take 100 ms, the rest 900 ms: p90 may be either, p95 is 900, the median 100.
    values = np.where(np.arange(5_000) % 10 == 0, 900.0, 100.0)
    bounds = {q: QuantileSequence(quantile=q).update(values).bounds() for q in (0.5, 0.9, 0.95)}
    assert bounds[0.5] == pytest.approx((100, 100), rel=PRECISION)
    assert bounds[0.9] == pytest.approx((100, 900), rel=PRECISION)
    assert bounds[0.95] == pytest.approx((900, 900), rel=PRECISION)


def test_200_ms_more_at_p95_are_found_within_5_000_an_arm() -> None:
    rng, arm = np.random.default_rng(3), QuantileSequence(quantile=0.95, level=0.975)
    target, legacy = (arm.update(rng.lognormal(6, 0.4, size=5_000) + shift) for shift in (200, 0))
    found = difference_of(target.current(), legacy.current())
    assert 100 < found.lower < 200 < found.upper < 320


def test_a_million_values_leave_a_state_of_a_few_kilobytes() -> None:
    state = QuantileSequence(quantile=0.95).update(np.random.default_rng(4).lognormal(6, 0.4, size=1_000_000))
    assert sum(state.counts) == 1_000_000
    assert len(state.to_json()) < 20_000


def test_no_values_have_no_quantile() -> None:
    empty = QuantileSequence(quantile=0.95)
    assert empty.update([]) is empty
    with pytest.raises(TooFewPairs, match="0 observations"):
        empty.current()


@pytest.mark.parametrize(
    ("values", "words"),
    [([1, math.nan], "first nan"), ([math.inf], "first inf"), ([-1.0], "first -1.0"), ([[1.0]], "shape \\(1, 1\\)")],
)
def test_what_is_no_duration_is_refused(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantileSequence(quantile=0.95).update(values)


@pytest.mark.parametrize("quantile", [0.0, 1.0, 95, math.nan])
def test_what_is_no_quantile_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match=f"quantile is {quantile}"):
        QuantileSequence(quantile=quantile)
