from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import difference_of
from anven_pipelines.stats.randomised_difference import AsymptoticDifference, RandomisedDifference
from anven_pipelines.stats.sequential import BoundedMean

Bools = npt.NDArray[np.bool_]

# The 1,000 outcomes and assignments of demo/ate_data.csv in confseq 0.0.11 (MIT licence), one bit each.
OUTCOMES = (
    "94428fa16409002040d00441a9350080a43022200c01004c066ab005cab2a882a8f62200060880880180b12560998070010032b60a060178aa0822"
    "04c5342204226a5350008f0005940041c80622b0a0738ca4104013cb885337800803168041e4ae145900240408030d320a0c84e10104c0409c4c08"
    "430ab095c041a1"
)
TREATED = (
    "84e4b64579e9cb3e5e050e491f4cf0cb6d95df2ac6a13e7cf48a768091b4fa55a9ffa2c5249cb94081c9aa31f19c7d4ea8b02e3bb1803db5b80413"
    "35f5ceaa153b6a97546a2a4fca9c246189bf4f364cfb0409c0cb7f0a8b722f44f66226910bae25fc67c134797b3c0532a32f10edb2fd8d86d97ed8"
    "7b0ef49ca8d181"
)


def bits(text: str) -> Bools:
    return np.array([digit == "1" for digit in f"{int(text, 16):01000b}"])


# After its first two: the demonstration predicts 0, not 1/2, in an arm without outcomes.
BEGUN = RandomisedDifference(
    smallest_share=0.5, n=2, total=2.0, squares=1.0, treated_n=1, treated_total=1.0, control_n=1, control_total=0.0
)


@pytest.mark.parametrize(
    ("n", "estimate", "lower", "upper"),
    [
        (4, 0.5, -1, 1),
        (9, 0.596296296296296, -1, 1),
        (100, 0.106826716602117, -0.355019952853719, 0.568673386057953),
        (500, 0.126626407227084, -0.0478456727926822, 0.30109848724685),
        (1000, 0.174591114336686, 0.0557940255263216, 0.29338820314705),
    ],
)
def test_the_demonstration_published_with_confseq(n: int, estimate: float, lower: float, upper: float) -> None:
    state = BEGUN.update(bits(OUTCOMES)[2:n], bits(TREATED)[2:n], share=0.5)
    assert state.n == n
    assert state.estimate == pytest.approx(estimate, abs=1e-13)
    # Its scale is 2 / share, twice what is needed; its variance is tuned for 50 outcomes of variance 0.16.
    reach = gamma_exponential_bound(state.squares, alpha=0.025, v_opt=50 * 0.16 * 4, scale=4) / n
    assert (max(estimate - reach, -1), min(estimate + reach, 1)) == pytest.approx((lower, upper), abs=1e-9)
    assert lower <= state.bounds().lower <= estimate <= state.bounds().upper <= upper


def test_three_observations_worked_by_hand() -> None:
    state = RandomisedDifference(smallest_share=0.25).update([1, 1, 0], np.array([True, False, True]), share=0.25)
    # Predicted 1/2 in an arm without outcomes: 0 + (1 - 1/2) / 0.25; 1/2 - (1 - 1/2) / 0.75; (1 - 1) + (0 - 1) / 0.25.
    surprises = np.array([2, -2 / 3, -4])
    assert state.total == pytest.approx(0 + 2 + (0.5 - 2 / 3) + (0 - 4))
    assert state.squares == pytest.approx(float((surprises**2).sum()))
    assert (state.treated_n, state.treated_total, state.control_n, state.control_total) == (2, 1, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(0, 50))
def test_how_a_stream_is_cut_changes_nothing_but_the_looks(events: list[tuple[float, bool]], cut: int) -> None:
    outcomes, treated = np.array([event[0] for event in events]), np.array([event[1] for event in events])
    for empty in (RandomisedDifference(smallest_share=0.2), AsymptoticDifference()):
        whole = empty.update(outcomes, treated, share=0.3)
        first = empty.update(outcomes[:cut], treated[:cut], share=0.3)
        first = type(first).from_json(first.to_json())
        parts = first.update(outcomes[cut:], treated[cut:], share=0.3)
        assert (parts.n, parts.treated_n, parts.control_n) == (whole.n, whole.treated_n, whole.control_n)
        assert parts.estimate == pytest.approx(whole.estimate, abs=1e-9)
        assert parts.squares == pytest.approx(whole.squares, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.floats(0.1, 0.9))
def test_swapping_the_arms_negates_the_difference(events: list[tuple[float, bool]], share: float) -> None:
    outcomes, treated = np.array([event[0] for event in events]), np.array([event[1] for event in events])
    empty = RandomisedDifference(smallest_share=0.1)
    there, back = empty.update(outcomes, treated, share=share), empty.update(outcomes, ~treated, share=1 - share)
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-9)
    assert there.bounds() == pytest.approx((-back.bounds().upper, -back.bounds().lower), abs=1e-9)


SHARES = np.repeat([0.1, 0.25, 0.5], 8)  # share of the treated arm, batch by batch


class Ramp(NamedTuple):
    """What is known at the end of a ramp: our state, each arm by itself, and whether a peeking z-test ever alarmed."""

    state: RandomisedDifference
    target: BoundedMean
    legacy: BoundedMean
    alarmed: bool


def run_ramp(rng: np.random.Generator, *, worse: float = 0.0) -> Ramp:
    """Raise the share while errors rise in both arms, and by `worse` more in the treated one."""
    ramp = Ramp(RandomisedDifference(smallest_share=0.1), BoundedMean(), BoundedMean(), alarmed=False)
    for share, errors in zip(SHARES.tolist(), np.linspace(0.02, 0.3, SHARES.size), strict=True):
        treated = rng.random(250) < share
        outcomes = (rng.random(250) < errors + worse * treated).astype(np.float64)
        state = ramp.state.update(outcomes, treated, share=share)
        p, q = state.treated_total / state.treated_n, state.control_total / state.control_n
        error = math.sqrt(p * (1 - p) / state.treated_n + q * (1 - q) / state.control_n)
        alarmed = ramp.alarmed or abs(p - q) > 1.96 * error
        ramp = Ramp(state, ramp.target.update(outcomes[treated]), ramp.legacy.update(outcomes[~treated]), alarmed)
    return ramp


def test_a_drift_during_a_ramp_is_no_difference_though_it_is_to_a_peeking_z_test() -> None:
    rng, streams, wrong, naive = np.random.default_rng(21), 40, 0, 0
    for _ in range(streams):
        ramp = run_ramp(rng)
        running = ramp.state.running()
        wrong += running is None or not running.lower <= 0 <= running.upper
        naive += ramp.alarmed
    assert wrong <= stats.binom.ppf(0.999, streams, 0.05)
    assert naive > 0.5 * streams


def test_arms_taken_apart_mistake_a_drift_for_a_difference_once_the_share_changes() -> None:
    rng = np.random.default_rng(22)
    ramps = [run_ramp(rng) for _ in range(10)]
    apart = [difference_of(ramp.target.current(), ramp.legacy.current()).estimate for ramp in ramps]
    assert np.mean(apart) > 0.04
    assert abs(np.mean([ramp.state.estimate for ramp in ramps])) < 0.01


def test_harm_is_found_during_a_ramp() -> None:
    found = run_ramp(np.random.default_rng(23), worse=0.15).state.current()
    assert 0 < found.lower < 0.15 < found.upper


def test_nine_percent_errors_are_told_from_five_within_ten_thousand_an_arm() -> None:
    rng = np.random.default_rng(24)
    treated = rng.random(20_000) < 0.5
    outcomes = rng.random(20_000) < np.where(treated, 0.09, 0.05)
    found = RandomisedDifference(smallest_share=0.5).update(outcomes, treated, share=0.5).current()
    assert 0.02 < found.lower < 0.04 < found.upper < 0.06


def test_costs_are_compared_in_their_own_unit() -> None:
    rng = np.random.default_rng(25)
    treated = rng.random(20_000) < 0.2
    costs = rng.lognormal(-6, 0.5, size=20_000) * np.where(treated, 0.5, 1)
    truth, mean = -0.5 * math.exp(-6 + 0.125), math.exp(-6 + 0.125)
    found = AsymptoticDifference().update(costs, treated, share=0.2).current()
    assert found.lower < truth < found.upper < 0
    assert found.upper - found.lower < 0.1 * mean


def test_an_empty_batch_is_no_look() -> None:
    for state in (RandomisedDifference(smallest_share=0.5), AsymptoticDifference()):
        assert state.update([], np.array([], dtype=bool), share=0.5) is state
        with pytest.raises(TooFewPairs, match="0 observations"):
            state.current()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcomes": [0.5, math.nan]}, "first nan"),
        ({"outcomes": [0.5]}, "treated has shape \\(2,\\)"),
        ({"treated": [1, 0]}, "type int64; \\(2,\\) booleans are needed"),
        ({"share": 1.0}, "share is 1.0"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": math.nan}, "share is nan"),
    ],
)
def test_what_would_mislead_is_refused(change: dict[str, Any], words: str) -> None:
    batch: dict[str, Any] = {"outcomes": [0.5, 1], "treated": [True, False], "share": 0.5} | change
    for state in (RandomisedDifference(smallest_share=0.2), AsymptoticDifference()):
        with pytest.raises(ValueError, match=words):
            state.update(**batch)


def test_a_share_below_the_smallest_one_is_refused() -> None:
    state = RandomisedDifference(smallest_share=0.2)
    with pytest.raises(ValueError, match="begin a new sequence"):
        state.update([1.0], np.array([True]), share=0.9)
    with pytest.raises(ValueError, match="1 of 1 observations"):
        state.update([1.5], np.array([True]), share=0.5)


@pytest.mark.parametrize("share", [0.0, 0.51, math.nan])
def test_a_smallest_share_that_no_arm_can_have_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="the smaller arm's share"):
        RandomisedDifference(smallest_share=share)
