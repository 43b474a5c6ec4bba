"""Which answers an online judge scores, what it is given of them, and how its scores count."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, SAFE, UNSAFE, GatewayEvent
from anven_pipelines.domain.gateway_text import GATEWAY_TEXTS, GatewayText
from anven_pipelines.domain.judge_progress import JudgeProgress
from anven_pipelines.domain.online_judge import MOST_ASKED, Asked, Due, asked_of, due_of, with_texts
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan, edit_of, judge_outcome
from anven_pipelines.domain.rollout_units import units_of
from anven_pipelines.spec_grading import OnlineJudge
from anven_pipelines.spec_rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
JUDGE = OnlineJudge(model="judge", url="http://127.0.0.1:9/v1", rubric="It is right.")
MINE = judge_outcome(JUDGE)
SETTLED = T0 + timedelta(minutes=11)
DUE_AT = T0 + timedelta(minutes=70)


def plan(**changes: Any) -> RolloutPlan:
    return RolloutPlan(workload="support", rollout=Rollout(judge=JUDGE, **changes), metrics=METRICS)


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
        unit=unit,
        intended="target",
        served="target",
        request_id=f"r{number}",
        status="ok",
    )
    return replace(event, **change)


def score(of: int, value: float = 1.0, outcome: str | None = MINE, **change: Any) -> GatewayEvent:
    facts: dict[str, Any] = {"worker": "w1", "seq": 100 + of, "request_id": f"r{of}", "score": value}
    at = T0 + timedelta(minutes=12)
    return replace(GatewayEvent(event_id=f"f{of}{outcome}", kind="feedback", ts=at, outcome=outcome, **facts), **change)


def due(events: Iterable[GatewayEvent], *, now: datetime = SETTLED, **changes: Any) -> Due:
    table = pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)
    return due_of(table, plan(**changes), JUDGE, now=now)


def waiting(events: Iterable[GatewayEvent], **changes: Any) -> list[str]:
    return due(events, **changes).waiting["request_id"].to_list()


def test_the_answer_of_a_settled_unit_waits_until_its_score_is_due() -> None:
    assert waiting([request(1)], now=T0 + timedelta(minutes=9)) == []
    assert waiting([request(1)], now=T0 + timedelta(minutes=10)) == ["r1"]
    assert waiting([request(1)], now=DUE_AT - timedelta(seconds=1)) == ["r1"]
    assert waiting([request(1)], now=DUE_AT) == []
    assert due([request(1)]).waiting["due_at"].to_list() == [DUE_AT]


def test_of_a_unit_with_many_answers_one_is_judged_and_not_always_the_first() -> None:
    places = set()
    for unit in range(20):
        events = [request(10 * unit + at, unit=f"{unit:08x}", seconds=at) for at in range(3)]
        (found,) = waiting(events)
        places.add([event.request_id for event in events].index(found))
    assert places == {0, 1, 2}


@pytest.mark.parametrize(
    "event",
    [
        request(1, status="error"),
        request(1, status="disconnected"),
        request(1, unit=None),
        request(1, intended=None),
        request(1, kind="shadow"),
        request(1, request_id=None),
    ],
    ids=["failed", "hung up", "no unit", "no arm", "shadow", "no id"],
)
def test_what_is_no_answer_of_a_unit_is_not_judged(event: GatewayEvent) -> None:
    assert waiting([event]) == []


def test_a_request_beyond_the_settling_of_its_unit_is_not_judged() -> None:
    assert waiting([request(1, status="error"), request(2, seconds=601)]) == []


def test_a_judged_unit_waits_no_more_and_another_feedback_is_no_judgement() -> None:
    two = [request(1), request(2, seconds=5)]
    assert waiting([*two, score(1)]) == waiting([*two, score(2)]) == []
    assert len(waiting([*two, score(1, outcome=None), score(2, outcome="judge-of-others")])) == 1


@pytest.mark.parametrize(
    "told",
    [score(1, score=None, flags=(SAFE,)), score(1, ts=DUE_AT + timedelta(seconds=1))],
    ids=["no score", "after it was due"],
)
def test_what_counts_for_no_score_keeps_no_answer_from_being_judged(told: GatewayEvent) -> None:
    """Whoever has the gateway's key may send it."""
    assert quality(request(1), told)["quality"] is None
    assert waiting([request(1), told]) == ["r1"]
    assert waiting([request(1), told, score(1, event_id="its own")]) == []


def test_units_are_drawn_by_their_hash_whatever_the_arm() -> None:
    units = [f"{number * 2**24:08x}" for number in range(256)]
    of_target = [request(at, unit=unit) for at, unit in enumerate(units)]
    of_legacy = [replace(event, intended="legacy", served="legacy") for event in of_target]
    drawn = waiting(of_target, judged=0.25)
    assert drawn == waiting(of_legacy, judged=0.25)
    assert sorted(drawn) == sorted(f"r{at}" for at in range(64))


def test_the_units_that_are_judged_are_those_that_are_due_for_a_score() -> None:
    events = [request(number, unit=f"{number * 2**27:08x}") for number in range(32)]
    judged = set(waiting(events, judged=0.5))
    table = pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)
    found = units_of(table, plan(judged=0.5), generation=4, now=DUE_AT)
    expected = {event.request_id for event in events if event.unit in found.filter("due")["unit"].to_list()}
    assert judged == expected
    assert len(judged) == 16


def test_a_unit_is_judged_anew_in_each_generation() -> None:
    assert len(waiting([request(1), request(2, seconds=3, generation=5)])) == 2


def test_a_name_that_a_client_gave_twice_is_that_of_the_first_request() -> None:
    first, second = request(1), request(2, unit="bb000000", seconds=3, request_id="r1")
    assert due([first, second]).waiting.height == 1
    assert waiting([replace(first, status="error"), second]) == []


def text_of(event: GatewayEvent, answer: str, **change: Any) -> GatewayText:
    """Give the text that a worker hands over behind an event, and another process of its own writes."""
    facts: dict[str, Any] = {"event_id": f"text of {event.event_id}", "kind": "request", "workload": "support"}
    at = event.ts + timedelta(milliseconds=1)
    text = GatewayText(**facts, ts=at, worker=f"{event.worker}-77", seq=1, request_id=event.request_id, answer=answer)
    return replace(text, **change)


def judged_text(events: Iterable[GatewayEvent], texts: Iterable[GatewayText]) -> list[str | None]:
    stored = pl.DataFrame([text.to_row() for text in texts], schema=GATEWAY_TEXTS.schema)
    return with_texts(due(events), stored)["answer"].to_list()


ALIKE = [request(1), request(2, unit="bb000000", seconds=3, request_id="r1", worker="w0")]
"""One name of two users' requests, dealt by two workers; the first one is judged."""
TEXTS = [text_of(ALIKE[0], "first"), text_of(ALIKE[1], "second")]


def test_of_two_requests_of_one_name_each_has_its_own_text_in_whatever_order_they_are_stored() -> None:
    assert judged_text(ALIKE, TEXTS) == judged_text(ALIKE, TEXTS[::-1]) == ["first"]


@pytest.mark.parametrize("worker", ["w0", "w1"], ids=["of another worker", "of the same worker"])
def test_where_its_own_text_is_lost_no_other_of_its_name_stands_for_it(worker: str) -> None:
    second = replace(ALIKE[1], worker=worker)
    assert judged_text([ALIKE[0], second], [text_of(second, "second")]) == [None]
    assert judged_text(ALIKE[:1], [text_of(second, "second", ts=T0 + timedelta(minutes=1))]) == [None]


def test_a_text_that_could_not_be_redacted_is_none_and_lets_no_other_of_its_name_in() -> None:
    assert judged_text(ALIKE, [replace(TEXTS[0], answer=None, problem="too long"), TEXTS[1]]) == [None]


def test_of_one_worker_a_name_that_came_again_at_once_keeps_both_texts_apart() -> None:
    again = request(2, unit="bb000000", seconds=0.5, request_id="r1")
    assert judged_text([again, ALIKE[0]], [text_of(again, "second"), TEXTS[0]]) == ["first"]


def test_a_request_without_a_name_begins_its_unit_where_units_are_counted_and_where_they_are_judged() -> None:
    """What ends later than its unit has settled counts for nothing, so it is not what is judged."""
    nameless = request(1, request_id=None)
    assert waiting([nameless, request(2, seconds=5)]) == ["r2"]
    assert waiting([nameless, request(2, seconds=601)], now=T0 + timedelta(minutes=21)) == []
    assert due([nameless, request(2, seconds=5)]).waiting["due_at"].to_list() == [DUE_AT]


def test_texts_are_needed_until_they_are_judged_or_too_late() -> None:
    early = due([request(1), request(2, seconds=5)], now=T0 + timedelta(minutes=1))
    assert sorted(early.needed) == ["r1", "r2"]
    assert early.known.to_list() == ["r1", "r2"]
    settled = due([request(1), request(2, seconds=5)])
    assert settled.needed.to_list() == settled.waiting["request_id"].to_list()
    assert due([request(1), score(1)]).needed.to_list() == []
    assert due([request(1)], now=DUE_AT).needed.to_list() == []


def quality(*events: GatewayEvent, judge: OnlineJudge | None = JUDGE) -> dict[str, Any]:
    table = pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)
    asked = replace(plan(), rollout=Rollout(judge=judge))
    (unit,) = units_of(table, asked, generation=4, now=DUE_AT).to_dicts()
    return unit


def test_with_a_judge_only_its_scores_are_quality_and_flags_of_all_are_safety() -> None:
    thumb = score(1, 0.0, outcome=None, event_id="up", flags=(UNSAFE,))
    late = score(1, 0.0, outcome="resolved", event_id="user", ts=T0 + timedelta(minutes=13), flags=(SAFE,))
    assert quality(request(1), score(1, 0.75), thumb, late)["quality"] == 0.75
    assert quality(request(1), score(1, 0.75), thumb, late)["safety"] == 1.0
    assert quality(request(1), thumb, late)["quality"] is None
    assert quality(request(1), score(1, 0.75), thumb, late, judge=None)["quality"] == 0.0  # the newest of all


def test_another_judge_is_another_outcome_and_how_it_is_asked_is_none_of_it() -> None:
    others = [JUDGE.model_copy(update={name: "other"}) for name in ("model", "url", "rubric")]
    assert len({MINE, *map(judge_outcome, others)}) == 4
    how = {"concurrency": 9, "timeout": timedelta(1), "api_key_env": "KEY", "judgements_per_day": 3}
    asked = replace(plan(), rollout=Rollout(judge=JUDGE.model_copy(update=how)))
    assert edit_of(plan(), asked) is None
    assert plan().digest == asked.digest
    for other in others:
        assert edit_of(plan(), replace(plan(), rollout=Rollout(judge=other))) == "the migration file's rollout changed"


def test_a_plan_without_a_judge_is_written_as_releases_before_it_did() -> None:
    without = RolloutPlan(workload="support", rollout=Rollout(), metrics=METRICS)
    assert "judge" not in without.decisive


def text(*messages: dict[str, Any]) -> str:
    return json.dumps(messages)


@pytest.mark.parametrize(
    ("messages", "answer", "asked"),
    [
        (text({"role": "user", "content": "When?"}), '{"content": "At nine."}', Asked("r", "When?", "At nine.")),
        (
            text({"role": "system", "content": "Be kind."}, {"role": "user", "content": "When?"}),
            '{"content": "At nine."}',
            Asked("r", "system: Be kind.\n\nuser: When?", "At nine."),
        ),
        (
            text({"role": "user", "content": "Send it."}),
            '{"content": "", "tool_calls": [{"name": "send", "arguments": "{}"}]}',
            Asked("r", "Send it.", "(calls send with {})"),
        ),
        (text(), "{}", Asked("r", None, "")),
        ("no JSON", "[1]", Asked("r", None, None)),
        (None, None, Asked("r", None, None)),
    ],
)
def test_the_judge_is_given_conversation_and_answer(messages: str | None, answer: str | None, asked: Asked) -> None:
    assert asked_of("r", messages, answer) == asked


def test_of_a_long_conversation_the_judge_is_given_the_newest_part() -> None:
    found = asked_of("r", text({"role": "user", "content": "x" * MOST_ASKED + "now?"}), "{}").question
    assert found is not None
    assert (len(found), found[-4:]) == (MOST_ASKED, "now?")


def test_each_failed_pass_makes_the_next_one_wait_longer_and_a_good_one_ends_that() -> None:
    progress, waits = JudgeProgress(), []
    for _ in range(7):
        progress = progress.ended(failure="down", told=None, pace=timedelta(minutes=1), now=T0)
        assert progress.next_at is not None
        waits.append((datetime.fromisoformat(progress.next_at) - T0).total_seconds())
    assert waits == [15, 30, 60, 120, 240, 300, 300]
    assert not progress.is_due(T0 + timedelta(seconds=299))
    assert progress.is_due(T0 + timedelta(seconds=300))
    assert progress.is_due(T0 - timedelta(hours=1))  # the clock was set back
    good = progress.ended(failure=None, told="the cap", pace=timedelta(minutes=1), now=T0)
    assert (good.failures, good.problem, good.is_due(T0 + timedelta(minutes=1))) == (0, "the cap", True)


def test_an_answer_that_cannot_be_judged_waits_longer_each_time_and_is_forgotten_with_its_unit() -> None:
    once = JudgeProgress().failed_answers(["r1"], waiting=["r1", "r2"], now=T0)
    assert not once.may_ask("r1", T0 + timedelta(seconds=59))
    assert once.may_ask("r1", T0 + timedelta(seconds=60))
    assert once.may_ask("r2", T0)
    twice = once.failed_answers(["r1"], waiting=["r1"], now=T0)
    assert not twice.may_ask("r1", T0 + timedelta(seconds=119))
    assert twice.failed_answers([], waiting=["r2"], now=T0).tries == {}


def test_judgements_are_counted_by_the_day_and_read_as_they_were_written() -> None:
    progress = JudgeProgress().reserved(7, T0).reserved(1, T0).failed_answers(["r1"], waiting=["r1"], now=T0)
    assert progress.left_today(10, T0) == 2
    assert progress.left_today(5, T0) == 0
    assert progress.left_today(10, T0 + timedelta(days=1)) == 10
    assert JudgeProgress.from_bytes(progress.to_bytes()) == progress
    assert JudgeProgress.from_bytes(b"[1") == JudgeProgress.from_bytes(b'{"x": 1}') == JudgeProgress()
