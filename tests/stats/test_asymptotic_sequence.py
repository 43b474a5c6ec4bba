from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.asymptotic_sequence import MIN_ASYMPTOTIC, AsymptoticMean

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
COSTS = np.random.default_rng(3).lognormal(-6, 1, size=20_000)


def test_bounds_agree_with_the_paper_s_own_form() -> None:
    # Theorem 2.2: sd x sqrt(2 (n rho^2 + 1) / (n rho)^2 x log(sqrt(n rho^2 + 1) / alpha)), rho^2 tuned as in (13).
    n, n_opt, alpha = 20_000, 1_000, 0.05
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n_opt)
    form = 2 * (n * rho**2 + 1) / (n * rho) ** 2 * math.log(math.sqrt(n * rho**2 + 1) / alpha)
    reach = float(COSTS.std()) * math.sqrt(form)
    found = AsymptoticMean(n_opt=n_opt).update(COSTS).current()
    assert found.estimate == pytest.approx(COSTS.mean(), rel=1e-12)
    assert (found.lower, found.upper) == pytest.approx((COSTS.mean() - reach, COSTS.mean() + reach), rel=1e-9)


@given(VALUES, st.integers(0, 40))
def test_how_a_stream_is_cut_changes_neither_mean_nor_spread(values: list[float], cut: int) -> None:
    state = AsymptoticMean().update(values[:cut]).update(values[cut:])
    assert state.n == len(values)
    assert state.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert state.squares == pytest.approx(np.var(values) * len(values), rel=1e-6, abs=1e-3)


def test_no_bounds_before_the_limit_is_near() -> None:
    state = AsymptoticMean().update(COSTS[: MIN_ASYMPTOTIC - 1])
    assert (state.running_lower, state.running_upper) == (None, None)
    with pytest.raises(TooFewPairs, match=f"{MIN_ASYMPTOTIC - 1} values; at least {MIN_ASYMPTOTIC}"):
        state.current()
    assert state.update(COSTS[:1]).current().lower > 0


def test_equal_values_prove_no_certainty() -> None:
    with pytest.raises(TooFewPairs, match="not all equal"):
        AsymptoticMean().update(np.full(1_000, 0.25)).current()


def test_a_state_read_back_goes_on_as_if_it_had_stayed() -> None:
    state = AsymptoticMean(level=0.99).update(COSTS[:700])
    again = AsymptoticMean.from_json(state.to_json())
    assert again == state
    assert again.update(COSTS[700:]) == state.update(COSTS[700:])


def test_skewed_costs_are_covered_at_every_look() -> None:
    rng, streams, looks, truth = np.random.default_rng(4), 100, 30, math.exp(-6 + 0.5)
    wrong = naive = 0
    for _ in range(streams):
        costs, state = rng.lognormal(-6, 1, size=looks * 200), AsymptoticMean()
        for batch in costs.reshape(looks, 200):
            state = state.update(batch)
        running = state.running()
        wrong += running is None or not running.lower <= truth <= running.upper
        n = 200 * np.arange(3, looks + 1)
        mean, square = (np.cumsum(costs**power)[n - 1] / n for power in (1, 2))
        naive += bool((np.abs(mean - truth) > 1.96 * np.sqrt((square - mean**2) / n)).any())
    assert wrong <= stats.binom.ppf(0.999, streams, 0.05)
    assert naive > 0.15 * streams


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite numbers are needed"):
        AsymptoticMean().update([1.0, bad])
