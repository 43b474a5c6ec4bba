from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from anven_pipelines.domain.arrivals import Rhythm, arrival_times, fit
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw(count: int, seconds: float = 100.0, seed: int = 1, **rhythm: float) -> NDArray[np.float64]:
    return arrival_times(count, seconds=seconds, rhythm=Rhythm(**rhythm), rng=np.random.default_rng(seed))


def spread(times: NDArray[np.float64]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize(("count", "seconds"), [(1, 5.0), (2, 1.0), (500, 60.0), (20_000, 86_400.0)])
def test_all_calls_arrive_in_order_and_within_the_duration(count: int, seconds: float) -> None:
    times = draw(count, seconds)
    assert times.shape == (count,)
    assert (np.diff(times) >= 0).all()
    assert times[0] > 0
    assert times[-1] < seconds


def test_the_mean_rate_is_the_one_asked_for() -> None:
    firsts = [draw(1000, 100.0, seed)[499] for seed in range(200)]
    assert np.mean(firsts) == pytest.approx(50, abs=1.0)  # a day is symmetric: half the calls in half of it
    assert 1000 / np.mean([draw(1000, 100.0, seed)[-1] for seed in range(200)]) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("gap_cv", [1.0, 2.0, 4.0])
def test_gaps_are_as_bursty_as_asked_for(gap_cv: float) -> None:
    assert spread(draw(20_000, gap_cv=gap_cv, daily_amplitude=0.0)) == pytest.approx(gap_cv, rel=0.1)


def test_the_default_is_burstier_than_a_poisson_process() -> None:
    assert spread(draw(5_000)) > 1.5


def test_a_day_has_its_night() -> None:
    times = draw(20_000, 86_400.0, gap_cv=1.0, daily_amplitude=0.6)
    night, noon = (np.mean((times > 3600 * start) & (times < 3600 * (start + 6))) for start in (0, 9))
    # The integral of 1 - 0.6 cos over six hours at the start, and around the middle of the day.
    assert night == pytest.approx(0.25 - 0.6 * np.sin(np.pi / 2) / (2 * np.pi), abs=0.02)
    assert noon == pytest.approx(0.25 + 0.6 * 2 * np.sin(np.pi / 4) / (2 * np.pi), abs=0.02)


def test_a_seed_decides_everything() -> None:
    assert np.array_equal(draw(100, seed=3), draw(100, seed=3))
    assert not np.array_equal(draw(100, seed=3), draw(100, seed=4))


@pytest.mark.parametrize(
    ("count", "seconds", "rhythm", "message"),
    [
        (0, 1.0, {}, "the number of calls is 0; 1 or more is needed"),
        (1, 0.0, {}, "the duration is 0; a finite number of seconds above 0 is needed"),
        (1, float("inf"), {}, "the duration is inf"),
        (1, 1.0, {"gap_cv": 0.0}, "the gaps' variation is 0"),
        (1, 1.0, {"gap_cv": float("inf")}, "the gaps' variation is inf"),
        (1, 1.0, {"daily_amplitude": 1.5}, "the daily amplitude is 1.5; 0 to 1 is needed"),
    ],
)
def test_what_makes_no_sense_is_refused(count: int, seconds: float, rhythm: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        arrival_times(count, seconds=seconds, rhythm=Rhythm(**rhythm), rng=np.random.default_rng(1))


def test_a_trace_is_scaled_to_the_duration_and_keeps_its_gaps_proportions() -> None:
    trace = np.array([10.0, 10.5, 13.0, 20.0])
    assert fit(trace, count=None, seconds=100.0).tolist() == [0, 5, 30, 100]
    assert fit(trace, count=3, seconds=6.0).tolist() == [0, 1, 6]
    assert fit(trace, count=1, seconds=6.0).tolist() == [0]


@pytest.mark.parametrize("count", [0, 5])
def test_a_trace_that_is_too_short_says_so(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"holds 4 arrivals and {count} are asked for; ask for 1 to 4"):
        fit(np.arange(4.0), count=count, seconds=1.0)


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan"), float("inf")])
def test_a_trace_is_scaled_to_no_duration_that_is_none(seconds: float) -> None:
    with pytest.raises(InvalidInput, match=f"the duration is {seconds:g}; a finite number of seconds above 0"):
        fit(np.arange(4.0), count=None, seconds=seconds)


def test_a_trace_that_comes_at_once_cannot_be_scaled() -> None:
    with pytest.raises(InvalidInput, match="come at once"):
        fit(np.zeros(4), count=None, seconds=1.0)
