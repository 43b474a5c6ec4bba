"""The mean difference of pairs is bounded at every look, on either side, and tightly where few pairs differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.paired_sequence import V_OPT, PairedDifference
from anven_pipelines.stats.randomised_difference import RandomisedDifference

if TYPE_CHECKING:
    from anven_pipelines.stats.confidence_sequence import FloatArray

DIFFERENCES = st.lists(st.floats(-1, 1), min_size=1, max_size=60)


def test_three_pairs_worked_by_hand() -> None:
    # Means before: none (0), 0 and 1/2. The upper bound predicts 0, 0 and 1/2; the lower one never above 0.
    state = PairedDifference().update([0, 1, -1])
    assert (state.estimate, state.squares_above, state.squares_below) == (0, 0 + 1 + 1.5**2, 0 + 1 + 1)
    assert state.bounds() == (-1, 1)


def test_bounds_are_those_of_the_boundary() -> None:
    state = PairedDifference(level=0.9, n=1000, total=10, squares_above=20, squares_below=30)
    above, below = (gamma_exponential_bound(v, alpha=0.05, v_opt=V_OPT, scale=1) / 1000 for v in (20, 30))
    assert state.bounds() == pytest.approx((0.01 - below, 0.01 + above))
    assert 0.02 < state.bounds().upper < 0.05


@settings(max_examples=50, deadline=None)
@given(DIFFERENCES, st.integers(0, 60))
def test_batches_are_as_one_and_a_sign_turns_the_bounds_round(differences: list[float], cut: int) -> None:
    whole = PairedDifference().update(differences)
    halves = PairedDifference().update(differences[:cut]).update(differences[cut:])
    assert halves.bounds() == pytest.approx(whole.bounds())
    assert PairedDifference.from_json(whole.to_json()) == whole
    turned = PairedDifference().update([-each for each in differences]).bounds()
    assert turned == pytest.approx((-whole.bounds().upper, -whole.bounds().lower))


@settings(max_examples=50, deadline=None)
@given(DIFFERENCES)
def test_it_is_the_sum_of_its_source_taken_pair_by_pair(differences: list[float]) -> None:
    """Written out from the theorem, without arrays."""
    above = below = total = 0.0
    for n, each in enumerate(differences):
        predicted = total / n if n else 0.0
        above += (each - max(predicted, 0.0)) ** 2
        below += (each - min(predicted, 0.0)) ** 2
        total += each
    mean, n = total / len(differences), len(differences)
    reach_below, reach_above = (gamma_exponential_bound(v, alpha=0.025, v_opt=V_OPT, scale=1) for v in (below, above))
    expected = max(mean - reach_below / n, -1), min(mean + reach_above / n, 1)
    assert PairedDifference().update(differences).bounds() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("v", [0.5, 5.0, 40.0, 400.0])
def test_the_boundary_is_where_the_mixture_itself_reaches_its_odds(v: float) -> None:
    """An independent integral of exp(rate s + v (log(1 - rate) + rate)) over the prior of the rate in [0, 1)."""
    alpha = 0.025
    rho = V_OPT / (-2 * np.log(2 * alpha) + np.log1p(-2 * np.log(2 * alpha)))

    def integral(s: float, time: float) -> float:
        def density(rate: float) -> float:
            return float(np.exp(rate * s + (time + rho) * rate + (time + rho - 1) * np.log1p(-rate)))

        return float(integrate.quad(density, 0, 1, limit=500, epsabs=0, epsrel=1e-10)[0])

    bound = gamma_exponential_bound(v, alpha=alpha, v_opt=V_OPT, scale=1)
    assert integral(bound, v) / integral(0, 0) == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("bad", [[1.01], [-1.01], [float("nan")], [[0.0]]])
def test_what_is_no_difference_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"from -1 to 1 are needed|shape"):
        PairedDifference().update(bad)


def test_nothing_bounds_nothing() -> None:
    assert PairedDifference().bounds() == (-1, 1)
    with pytest.raises(TooFewPairs):
        PairedDifference().current()


def rare(rng: np.random.Generator, n: int) -> FloatArray:
    return (rng.random(n) < 0.02).astype(float)


def skewed(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.choice([-1.0, 0.0, 1.0], size=n, p=[0.05, 0.88, 0.07])


def turning(rng: np.random.Generator, n: int) -> FloatArray:
    """Good hours first: the mean of all so far is what the bounds hold for, and it ends at 0.02."""
    chance = np.linspace(0.0, 0.04, n)
    return (rng.random(n) < chance).astype(float)


@pytest.mark.parametrize("draw", [rare, skewed])
def test_its_bounds_err_at_any_look_at_most_at_their_rate(draw: object) -> None:
    """300 streams of 1,500 pairs whose mean is 0.02, looked at after each 50; one side may err in 10 %."""
    assert callable(draw)
    wrong = np.zeros(2)
    for seed in range(300):
        state = PairedDifference(level=0.8)
        for batch in np.split(draw(np.random.default_rng(seed), 1500), 30):
            state = state.update(batch)
        lower, upper = state.running_lower, state.running_upper
        assert lower is not None
        assert upper is not None
        wrong += (lower > 0.02, upper < 0.02)
    assert wrong.max() <= stats.binom.ppf(0.999, 300, 0.1)
    assert wrong.max() > 0  # bounds that never err would be no test


def test_a_mean_that_moves_is_covered_as_the_mean_so_far() -> None:
    wrong = 0
    for seed in range(200):
        x = turning(np.random.default_rng(seed), 1500)
        means = np.cumsum(np.linspace(0.0, 0.04, 1500)) / np.arange(1, 1501)
        state, errs = PairedDifference(level=0.8), False
        for at in range(0, 1500, 75):
            state = state.update(x[at : at + 75])
            errs = errs or state.bounds().upper < means[at + 74]
        wrong += errs
    assert wrong <= stats.binom.ppf(0.999, 200, 0.1)


def test_pairs_prove_a_small_difference_with_far_fewer_than_a_draw_does() -> None:
    """Both arms fail 1 % of 2,000 requests; the draw gives a twentieth of them to one arm."""
    rng = np.random.default_rng(5)
    first, second = ((rng.random(2000) < 0.01).astype(float) for _ in range(2))
    treated = rng.random(2000) < 0.05
    paired = PairedDifference(level=0.9).update(first - second).current()
    drawn = RandomisedDifference(level=0.9, smallest_share=0.05)
    dealt = drawn.update(np.where(treated, first, second), treated, share=0.05).current()
    assert paired.upper - paired.lower < 0.3 * (dealt.upper - dealt.lower)
