"""The gateway's events become one observation per user or conversation, however many requests it makes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, SAFE, UNSAFE, GatewayEvent
from anven_pipelines.domain.rollout_measure import UNITS
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_units import units_of
from anven_pipelines.spec_rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
LATER = T0 + timedelta(hours=2)
PLAN = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)


def request(number: int, *, unit: str | None = "aa000000", seconds: float = 0.0, **change: Any) -> GatewayEvent:
    event = GatewayEvent(
        event_id=f"e{number}",
        kind="request",
        ts=T0 + timedelta(seconds=seconds),
        worker="w1",
        seq=number,
        workload="support",
        attempt=1,
        generation=4,
        stage=1,
        share=0.25,
        unit=unit,
        bucket=0.1,
        intended="target",
        served="target",
        request_id=f"r{number}",
        status="ok",
        stream=True,
        ttft_ms=100.0,
        latency_ms=300.0,
        cost_usd=0.01,
        cached=False,
        contract_ok=True,
    )
    return replace(event, **change)


def feedback(number: int, of: int, **change: Any) -> GatewayEvent:
    ts = T0 + timedelta(minutes=1, seconds=number)
    event = GatewayEvent(event_id=f"f{number}", kind="feedback", ts=ts, worker="w1", seq=number, request_id=f"r{of}")
    return replace(event, **change)


def units(events: Iterable[GatewayEvent], *, now: datetime = LATER, plan: RolloutPlan = PLAN) -> list[dict[str, Any]]:
    table = pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)
    found = units_of(table, plan, generation=4, now=now)
    assert found.schema == UNITS.schema
    return found.to_dicts()


def test_no_event_gives_no_unit() -> None:
    assert units([]) == []


def test_a_unit_with_many_requests_counts_once() -> None:
    (row,) = units(
        [
            request(1),
            request(2, seconds=5, status="error", latency_ms=None, ttft_ms=None, cost_usd=None, contract_ok=None),
            request(3, seconds=9, ttft_ms=900.0, contract_ok=False),
            feedback(1, of=1, score=1.0, flags=(SAFE,)),
            feedback(2, of=3, score=0.0, flags=(UNSAFE,)),
        ]
    )

    assert (row["seen_at"], row["treated"]) == (T0, True)
    assert row["errors"] == pytest.approx(1 / 3)
    assert (row["contract"], row["safety"], row["quality"]) == (0.5, 0.5, 0.5)
    assert (row["ttft_ms"], row["latency_ms"], row["cost_usd"]) == (100.0, 300.0, 0.01)
    assert (row["due"], row["moved"], row["fell_back"]) == (True, False, False)


def test_what_a_unit_does_after_it_settled_is_not_counted() -> None:
    (row,) = units([request(1), request(2, seconds=601, status="error")])

    assert row["errors"] == 0


def test_a_unit_that_has_not_settled_does_not_count_yet() -> None:
    assert units([request(1)], now=T0 + timedelta(minutes=9, seconds=59)) == []
    assert len(units([request(1)], now=T0 + timedelta(minutes=10))) == 1


def test_a_score_has_its_time_to_come() -> None:
    (row,) = units([request(1)], now=T0 + timedelta(minutes=69))
    assert (row["due"], row["quality"]) == (False, None)
    (row,) = units([request(1)], now=T0 + timedelta(minutes=70))
    assert (row["due"], row["quality"]) == (True, None)


def test_of_two_scores_the_newer_one_counts() -> None:
    (row,) = units([request(1), feedback(2, of=1, score=0.2), feedback(1, of=1, score=0.9)])

    assert row["quality"] == 0.2


def test_a_thumb_that_is_turned_twice_counts_as_it_was_left() -> None:
    thumbs = [feedback(number, of=1, score=score) for number, score in enumerate((1.0, 0.0, 1.0), 1)]
    (row,) = units([request(1), *reversed(thumbs)])
    assert row["quality"] == 1.0

    at_once = [replace(thumb, ts=T0, event_id=f"f{9 - thumb.seq}") for thumb in thumbs[:2]]
    (row,) = units([request(1), *reversed(at_once)])
    assert row["quality"] == 0.0


def test_a_feedback_on_a_name_that_several_requests_have_scores_the_first_one_only() -> None:
    """The client's library names its requests itself, and always alike."""
    named = [request(number, unit=f"{number:08x}", seconds=number, request_id="same") for number in range(1, 11)]
    rows = units([*reversed(named), feedback(1, of=0, request_id="same", score=0.0, flags=(UNSAFE,))])

    assert [(row["quality"], row["safety"]) for row in rows] == [(0.0, 1.0), *[(None, None)] * 9]
    assert all(row["due"] for row in rows)  # unmeasured, not left out


def test_a_name_that_another_generation_had_first_is_that_ones() -> None:
    rows = units([request(1, generation=3), request(2, seconds=5, request_id="r1"), feedback(1, of=1, score=1.0)])

    assert [row["quality"] for row in rows] == [None]


def test_a_score_that_comes_after_it_was_due_is_not_counted() -> None:
    """The unit was counted without: an outcome that changed between two looks would be counted twice."""
    late = T0 + timedelta(minutes=71)
    (row,) = units([request(1), feedback(1, of=1, score=0.9), feedback(2, of=1, score=0.0, flags=(UNSAFE,), ts=late)])

    assert (row["quality"], row["safety"]) == (0.9, None)


def test_a_thumb_says_nothing_of_safety() -> None:
    (row,) = units([request(1), feedback(1, of=1, score=1.0)])
    assert row["safety"] is None
    (row,) = units([request(1), feedback(1, of=1, flags=(SAFE,)), feedback(2, of=1, score=1.0)])
    assert (row["safety"], row["quality"]) == (0.0, 1.0)
    (row,) = units([request(1), feedback(1, of=1, flags=(UNSAFE,)), feedback(2, of=1, flags=(SAFE,))])
    assert row["safety"] == 1.0


def test_a_failure_that_legacy_rescued_is_the_targets() -> None:
    (row,) = units([request(1, served="legacy", why="fallback", error_class="timeout")])

    assert (row["treated"], row["errors"], row["fell_back"]) == (True, 1.0, True)


def test_what_the_breaker_kept_from_the_target_is_no_error_of_it() -> None:
    (row,) = units([request(1, served="legacy", why="breaker")])

    assert (row["errors"], row["fell_back"]) == (0.0, True)


def test_a_unit_that_was_asked_of_both_arms_is_told() -> None:
    (row,) = units([request(1), request(2, seconds=1, intended="legacy", served="legacy")])

    assert (row["treated"], row["moved"]) == (True, True)


def test_a_cached_answer_has_no_time_and_a_client_that_left_has_none_either() -> None:
    (cached,) = units([request(1, cached=True, latency_ms=1.0, ttft_ms=1.0)])
    (left,) = units([request(1, status="disconnected")])

    for row in (cached, left):
        assert (row["timed"], row["streamed"], row["latency_ms"], row["errors"]) == (False, False, None, 0.0)


def test_a_part_of_an_answer_that_a_client_left_says_nothing_of_its_form() -> None:
    """LiteLLM tells of what came so far as of a whole answer."""
    gone = request(1, status="disconnected", contract_ok=False)
    (left,) = units([gone])
    (came_back,) = units([gone, request(2, seconds=5)])

    assert [(row["left"], row["contract"]) for row in (left, came_back)] == [(True, None), (True, 0.0)]


def test_other_generations_shadows_and_requests_without_an_arm_are_left_out() -> None:
    others = [
        request(1, generation=3),
        request(2, kind="shadow"),
        request(3, intended=None),
        request(4, unit=None),
    ]

    assert units(others) == []


def test_only_a_drawn_share_of_the_units_is_due_for_a_score() -> None:
    plan = replace(PLAN, rollout=Rollout(judged=0.25))
    rows = units([request(1, unit="3f000000"), request(2, unit="40000000")], plan=plan)

    assert [row["due"] for row in rows] == [True, False]


def test_units_stand_in_the_order_of_their_first_requests() -> None:
    rows = units([request(2, unit="bb000000", seconds=2), request(1, unit="cc000000", seconds=1)])

    assert [row["unit"] for row in rows] == ["cc000000", "bb000000"]
