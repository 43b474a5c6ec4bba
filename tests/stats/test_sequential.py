from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.asymptotic_sequence import AsymptoticMean
from anven_pipelines.stats.confidence_sequence import ConfidenceSequence, FloatArray, difference_of
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.sequential import BoundedMean, Proportion, SteadyMean

if TYPE_CHECKING:
    import numpy.typing as npt

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)
BITS = st.lists(st.integers(0, 1), min_size=1, max_size=60)


def plug_in_by_hand(scores: npt.ArrayLike, alpha: float) -> tuple[float, float]:
    """Theorem 2 of Waudby-Smith and Ramdas, one observation at a time as it is written there."""
    total, squares, mean, variance = 0.0, 0.0, 0.5, 0.25
    bets = bet_total = spent = 0.0
    for t, x in enumerate(np.asarray(scores).tolist(), start=1):
        bet = min(math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(t + 1))), 0.5)
        bets, bet_total = bets + bet, bet_total + bet * x
        spent += 4 * (x - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        total += x
        mean = (0.5 + total) / (t + 1)
        squares += (x - mean) ** 2
        variance = (0.25 + squares) / (t + 1)
    reach = (math.log(2 / alpha) + spent) / bets
    return max(bet_total / bets - reach, 0), min(bet_total / bets + reach, 1)


def test_one_success_worked_by_hand() -> None:
    # Variance 1/4 gives a bold bet, cut at 1/2; it costs (1 - 1/2)^2 x (log 2 - 1/2).
    bound = 1 - (math.log(40) + 0.25 * (math.log(2) - 0.5)) / 0.5
    assert bound < 0
    state = SteadyMean().update([1.0])
    assert (state.bets, state.bet_total) == (0.5, 0.5)
    assert state.spent == pytest.approx(0.25 * (math.log(2) - 0.5))
    assert state.current() == Interval(1, 0, 1, 0.95, "predictable plug-in confidence sequence")


@settings(max_examples=50, deadline=None)
@given(SCORES, st.sampled_from([0.8, 0.95, 0.99]))
def test_a_batch_agrees_with_the_paper_one_observation_at_a_time(scores: list[float], level: float) -> None:
    found = SteadyMean(level=level).update(scores).bounds()
    assert found == pytest.approx(plug_in_by_hand(scores, 1 - level), abs=1e-12)


def test_a_bounded_mean_worked_by_hand() -> None:
    # Predicted 1/2, (1/2 + 1)/2 and (1/2 + 1 + 0)/3; seen 1, 0 and 1/2.
    state = BoundedMean().update([1, 0, 0.5])
    assert (state.estimate, state.squares) == (0.5, 0.25 + 0.5625 + 0)
    assert state.bounds() == (0, 1)


def test_bounded_bounds_are_those_of_the_boundary_that_agrees_with_confseq() -> None:
    state = BoundedMean(n=1000, total=400, squares=100, n_opt=5000)
    # gamma_exponential_mixture_bound(100, 0.025, v_opt=500, c=1, alpha_opt=0.025) of confseq 0.0.11
    assert state.bounds() == pytest.approx((0.4 - 0.0361985666145, 0.4 + 0.0361985666145), abs=1e-11)


@pytest.mark.parametrize(
    ("successes", "n", "lower", "upper"),
    [
        # `bernoulli_confidence_interval` of confseq 0.0.11 with t_opt = 1000 (see test_boundaries.py).
        (0, 50, 0, 0.285314904356),
        (1, 50, 0, 0.316135426207),
        (3, 40, 0.00202830397024, 0.471735153216),
        (50, 1000, 0.0314986837043, 0.0734112781051),
        (900, 10000, 0.0809624677982, 0.0995332887881),
        (9999, 10000, 0.999218238055, 1),
        (20, 20, 0.293875256073, 1),
    ],
)
def test_a_proportion_agrees_with_confseq(successes: int, n: int, lower: float, upper: float) -> None:
    state = Proportion(n_opt=1000).update(np.arange(n) < successes)
    assert state.estimate == successes / n
    assert state.bounds() == pytest.approx((lower, upper), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(BITS)
def test_swapping_successes_and_failures_mirrors_the_bounds(outcomes: list[int]) -> None:
    there, back = Proportion().update(outcomes), Proportion().update([1 - outcome for outcome in outcomes])
    assert (there.bounds().lower, there.bounds().upper) == pytest.approx(
        (1 - back.bounds().upper, 1 - back.bounds().lower)
    )


@settings(max_examples=30, deadline=None)
@given(BITS, st.integers(0, 60))
def test_how_a_stream_is_cut_changes_nothing_but_the_looks(outcomes: list[int], cut: int) -> None:
    for empty in (SteadyMean(), BoundedMean(), Proportion()):
        whole, parts = empty.update(outcomes), empty.update(outcomes[:cut]).update(outcomes[cut:])
        assert parts.n == whole.n == len(outcomes)
        assert parts.estimate == pytest.approx(whole.estimate)
        assert parts.bounds() == pytest.approx(whole.bounds(), abs=1e-12)
        running, current = parts.running(), parts.current()
        assert running is None or (running.lower >= current.lower - 1e-12 and running.upper <= current.upper + 1e-12)


@settings(max_examples=30, deadline=None)
@given(BITS, BITS)
def test_a_state_read_back_goes_on_as_if_it_had_stayed(first: list[int], second: list[int]) -> None:
    for empty in (SteadyMean(level=0.9), BoundedMean(level=0.9), Proportion(level=0.9)):
        state = empty.update(first)
        again = type(state).from_json(state.to_json())
        assert again == state
        assert again.update(second) == state.update(second)


def test_a_state_is_strict_json_with_its_kind() -> None:
    kept = json.loads(SteadyMean().to_json(), parse_constant=pytest.fail)
    assert kept["kind"] == "SteadyMean"
    assert (kept["running_lower"], kept["running_upper"]) == (None, None)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "7", Proportion().to_json(), SteadyMean().to_json().replace("total", "sum")]
)
def test_a_state_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no state of SteadyMean"):
        SteadyMean.from_json(text)


def test_an_empty_batch_is_no_look() -> None:
    for state in (SteadyMean(), BoundedMean(), Proportion().update([1, 0, 1]), AsymptoticMean()):
        assert state.update([]) is state


@pytest.mark.parametrize("state", [SteadyMean(), BoundedMean(), Proportion(), AsymptoticMean()])
def test_without_observations_there_is_no_interval(state: ConfidenceSequence) -> None:
    for interval in (state.current, state.running):
        with pytest.raises(TooFewPairs, match="0 observations; at least one"):
            interval()


def test_running_bounds_never_widen_and_contradict_each_other_once_the_mean_moves() -> None:
    rng, state, widths = np.random.default_rng(5), BoundedMean(), []
    for _ in range(30):
        state = state.update(rng.beta(8, 2, size=50))
        running = state.running()
        assert running is not None
        widths.append(running.upper - running.lower)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.1
    for _ in range(30):
        state = state.update(rng.beta(2, 8, size=50))
    assert state.running() is None
    assert state.current().lower < 0.5 < state.current().upper


def wrong_at_any_look(state: BoundedMean | SteadyMean | Proportion, batches: FloatArray, truth: float) -> bool:
    for batch in batches:
        state = state.update(batch)
    running = state.running()
    return running is None or not running.lower <= truth <= running.upper


def test_looking_after_every_batch_errs_no_more_often_than_the_level_and_the_t_test_does() -> None:
    rng, streams, share = np.random.default_rng(11), 60, 0.08
    kinds: tuple[BoundedMean | SteadyMean | Proportion, ...] = (BoundedMean(), SteadyMean(), Proportion())
    wrong, naive = [0, 0, 0], 0
    for _ in range(streams):
        batches = (rng.random((10, 80)) < share).astype(np.float64)
        wrong = [count + wrong_at_any_look(kind, batches, share) for count, kind in zip(wrong, kinds, strict=True)]
        n = 80 * np.arange(1, 11)
        mean = np.cumsum(batches.sum(1)) / n
        error = np.sqrt(mean * (1 - mean) / (n - 1))
        naive += bool((np.abs(mean - share) > stats.t.ppf(0.975, n - 1) * error).any())
    assert max(wrong) <= stats.binom.ppf(0.999, streams, 0.05)
    assert naive > 0.15 * streams


@pytest.mark.parametrize("kind", [BoundedMean(level=0.8), SteadyMean(level=0.8)])
def test_graded_scores_are_covered_at_every_look(kind: BoundedMean | SteadyMean) -> None:
    rng, streams = np.random.default_rng(12), 60
    wrong = sum(wrong_at_any_look(kind, rng.beta(1.8, 0.2, size=(20, 30)), 0.9) for _ in range(streams))
    assert wrong <= stats.binom.ppf(0.999, streams, 0.2)


def test_an_average_that_moves_is_covered_where_the_class_says_so() -> None:
    rng, chances, missed = np.random.default_rng(14), np.linspace(0.02, 0.5, 2_000), 0
    for _ in range(20):
        state = BoundedMean()
        for at in range(0, 2_000, 200):
            state = state.update(rng.random(200) < chances[at : at + 200])
            missed += not state.current().lower <= chances[: at + 200].mean() <= state.current().upper
    assert missed <= 4


@pytest.mark.parametrize("kind", [Proportion(level=0.975), BoundedMean(level=0.975), SteadyMean(level=0.975)])
def test_nine_percent_errors_are_told_from_five_within_ten_thousand(
    kind: Proportion | BoundedMean | SteadyMean,
) -> None:
    rng = np.random.default_rng(13)
    target, legacy = kind.update(rng.random(10_000) < 0.09), kind.update(rng.random(10_000) < 0.05)
    found = difference_of(target.current(), legacy.current())
    assert found.level == pytest.approx(0.95)
    assert 0 < found.lower < 0.04 < found.upper < 0.07


@pytest.mark.parametrize("kind", [Proportion(), BoundedMean()])
def test_looking_for_ever_costs_at_most_twice_the_width_of_one_look(kind: Proportion | BoundedMean) -> None:
    # Wald's at n = 10,000 and 5 % is 2 x 1.96 x sqrt(0.05 x 0.95 / 10,000) = 0.00854 wide.
    bounds = kind.update(np.random.default_rng(1).permutation(10_000) < 500).bounds()
    assert bounds.upper - bounds.lower < 2 * 0.00854


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda: BoundedMean().update([math.nan]), "1 of 1 observations, first nan"),
        (lambda: BoundedMean().update([0.2, -0.1]), "first -0.1"),
        (lambda: SteadyMean().update([0.5, math.nan]), "1 of 2 observations, first nan"),
        (lambda: SteadyMean().update([0.5, 1.01]), "first 1.01, are unusable; finite numbers from 0 to 1"),
        (lambda: SteadyMean().update([[0.5]]), "shape \\(1, 1\\)"),
        (lambda: SteadyMean().update(0.5), "shape \\(\\)"),
        (lambda: Proportion().update([0.5]), "outcomes hold 0.5"),
        (lambda: Proportion().update([-1]), "first -1.0"),
        (lambda: Proportion(level=1.0), "level is 1.0"),
        (lambda: SteadyMean(level=0.0), "level is 0.0"),
        (lambda: SteadyMean(level=math.nan), "level is nan"),
    ],
)
def test_what_would_mislead_is_refused(update: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        update()


def test_a_difference_takes_the_far_ends_of_both() -> None:
    found = difference_of(Interval(5, 4, 7, 0.98, "a"), Interval(3, 1, 3.5, 0.97, "b"))
    assert found == Interval(2, 0.5, 6, pytest.approx(0.95), "difference by union bound: a; b")  # type: ignore[arg-type]


def test_open_sides_leave_a_difference_open() -> None:
    found = difference_of(Interval(5, 4, math.inf, 0.975, "a"), Interval(3, 1, 3.5, 0.975, "a"))
    assert (found.lower, found.upper) == (0.5, math.inf)


def test_levels_that_leave_none_for_a_difference_are_refused() -> None:
    with pytest.raises(ValueError, match="leave 0 for the difference"):
        difference_of(Interval(5, 4, 7, 0.5, "a"), Interval(3, 1, 3.5, 0.5, "b"))
