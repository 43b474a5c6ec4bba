"""At 100 % a target is held against legacy at the same hours: a daily rhythm is no harm, and harm is found in spite."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.rollout_hours import of_same_hours
from anven_pipelines.domain.rollout_measure import UNITS, compare, spans_of, windows_of
from anven_pipelines.domain.rollout_plan import RolloutPlan
from anven_pipelines.spec_rollout import Metric, Rollout, Stage

if TYPE_CHECKING:
    from anven_pipelines.domain.rollout_evidence import Comparison

METRICS: Final[tuple[Metric, ...]] = ("quality", "errors", "ttft")
PLAN: Final = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)
HALF, LAST = 2, 3
T0: Final = datetime(2026, 3, 4, 15, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
RATE: Final = 1_200


def units(since: datetime, hours: float, *, share: float = 1.0, loss: float = 0.0, seed: int = 1) -> pl.DataFrame:
    """Simulate units with a daily rhythm: 10 points of quality, 5 of errors, a third to three times the TTFT.

    The worst hour is the middle of a recent window.
    """
    rng = np.random.default_rng(seed)
    n = round(hours * RATE)
    times = [since + HOUR * (number / RATE) for number in range(n)]
    day = np.array([math.sin(2 * math.pi * (at - T0 + 3 * HOUR) / timedelta(days=1)) for at in times])
    treated = rng.random(n) < share
    return pl.DataFrame(
        {
            "unit": [f"{number:08x}" for number in range(n)],
            "seen_at": times,
            "treated": treated,
            "errors": (rng.random(n) < 0.06 - 0.05 * day).astype(np.float64),
            "quality": (rng.random(n) < (0.87 + 0.1 * day) * (1 - loss * treated)).astype(np.float64),
            "ttft_ms": rng.lognormal(6, 0.3, n) * 3.0**-day,
            **dict.fromkeys(("contract", "safety", "latency_ms", "cost_usd")),
            **dict.fromkeys(("streamed", "timed", "due"), True),
            **dict.fromkeys(("left", "fell_back", "moved"), False),
        },
        schema=UNITS.schema,
        strict=False,
    )


BEFORE: Final = units(T0, 24, share=0.5, seed=2)
ALONE_AT: Final = T0 + 24 * HOUR


def found(alone: pl.DataFrame, hours: float, *, before: pl.DataFrame = BEFORE) -> dict[Metric, Comparison]:
    """What is found of the first hours at 100 %."""
    now = ALONE_AT + hours * HOUR
    seen = alone.filter(pl.col("seen_at") < now)
    windows = windows_of(seen, PLAN, entered_at=ALONE_AT, now=now - timedelta(microseconds=1), alone=True)
    return {each.metric: each for each in compare(PLAN, LAST, windows, before=before)}


def test_a_daily_rhythm_of_an_equal_target_is_no_harm_at_any_hour_and_is_proven_to_be_none() -> None:
    alone = units(ALONE_AT, 50)

    harmful = {
        (metric, hours) for hours in range(2, 51, 2) for metric, each in found(alone, hours).items() if each.is_harm
    }
    assert not harmful
    assert all(each.is_proven(widened=1) for each in found(alone, 50).values())


def test_a_stage_that_shows_half_the_day_says_nothing_of_the_other_half_and_the_rhythm_is_taken_for_harm() -> None:
    """What docs/rollout.md calls weaker: it shows as well that the rhythm above is more than the limit bears."""
    alone, half = units(ALONE_AT, 24), BEFORE.filter(pl.col("seen_at") < T0 + 11 * HOUR)

    harmful = {
        metric for hours in range(2, 25, 2) for metric, each in found(alone, hours, before=half).items() if each.is_harm
    }
    assert harmful >= {"quality", "ttft"}


def test_a_third_window_is_of_the_present_day_and_all_spend_no_more_than_the_error_rate_of_the_stage() -> None:
    looks = [
        spans_of(PLAN, entered_at=ALONE_AT, now=ALONE_AT + hours * HOUR, alone=True) for hours in range(0, 24 * 400, 6)
    ]
    assert {len(spans) for spans in looks} == {3}
    assert [spans[2].since - ALONE_AT for spans in looks[3:6]] == [0 * HOUR, 24 * HOUR, 24 * HOUR]
    spent = sum({(place, span.since): span.harm_level for each in looks for place, span in enumerate(each)}.values())
    assert 0.998 * PLAN.harm_level < spent <= PLAN.harm_level


def test_a_plan_of_hours_has_no_window_of_a_day() -> None:
    plan = replace(PLAN, rollout=Rollout(stages=[Stage(share=0.5, soak=HOUR), Stage(share=1.0, soak=6 * HOUR)]))
    assert spans_of(plan, entered_at=T0, now=T0 + HOUR, alone=True) == spans_of(plan, entered_at=T0, now=T0 + HOUR)


@pytest.mark.parametrize(("begins_at", "told_at"), [(0, 6), (15, 24), (40, 48)])
def test_harm_that_begins_at_any_hour_of_the_rhythm_is_found(begins_at: int, told_at: int) -> None:
    alone = pl.concat(
        [units(ALONE_AT, begins_at), units(ALONE_AT + begins_at * HOUR, told_at - begins_at, loss=0.2, seed=4)]
    )

    assert [metric for metric, each in found(alone, told_at).items() if each.is_harm] == ["quality"]


def test_a_window_is_held_against_the_hours_that_it_covers_so_far_in_their_order() -> None:
    """It begins at 21:00 and has gone on to 02:00; legacy was seen from 15:00 to 15:00."""
    window = units(ALONE_AT + 6 * HOUR, 5)
    target, legacy = of_same_hours(window, BEFORE)

    assert target.equals(window)
    assert legacy.height == 5 * RATE
    assert legacy["seen_at"].dt.hour().unique(maintain_order=True).to_list() == [21, 22, 23, 0, 1]
    later = of_same_hours(units(ALONE_AT + 6 * HOUR, 22), BEFORE).legacy
    assert later.height == 22 * RATE
    assert later.head(5 * RATE).equals(legacy)
    assert later["seen_at"].dt.hour().unique(maintain_order=True).to_list()[-5:] == [14, 15, 16, 17, 18]


def test_beyond_a_day_both_are_whole_days() -> None:
    target, legacy = of_same_hours(units(ALONE_AT, 55), BEFORE)
    assert (target.height, legacy.height) == (48 * RATE, 24 * RATE)
    assert target["seen_at"].max() < ALONE_AT + 48 * HOUR  # type: ignore[operator]  # a maximum of times
    longer = units(T0 - 40 * HOUR, 64, share=0.5)
    hours = of_same_hours(target, longer).legacy.group_by(pl.col("seen_at").dt.hour()).len()
    assert hours["len"].to_list() == [2 * RATE] * 24


def test_hours_in_which_legacy_had_no_traffic_are_not_judged() -> None:
    """Nobody comes from midnight to six; then somebody does."""
    by_day = BEFORE.filter(pl.col("seen_at").dt.hour() >= 6)
    target, legacy = of_same_hours(units(ALONE_AT, 24), by_day)
    assert target["seen_at"].dt.hour().min() == 6
    assert (target.height, legacy.height) == (18 * RATE, 18 * RATE)


def test_a_stage_that_shows_no_other_hours_is_compared_with_as_a_whole() -> None:
    window, short = units(ALONE_AT, 30), BEFORE.head(4 * RATE)
    target, legacy = of_same_hours(window, short)
    assert target.equals(window)
    assert legacy.equals(short)
    assert of_same_hours(window, short.clear()).legacy.is_empty()
    assert of_same_hours(window.clear(), BEFORE).legacy.equals(BEFORE)
