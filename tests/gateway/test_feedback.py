"""Which deliveries of a feedback are one."""

from __future__ import annotations

import pytest

from anven_pipelines.gateway.feedback import OUTCOME, REPEAT_S, FeedbackIds, Said

UP, DOWN = Said(1.0, None, None), Said(0.0, None, None)


def test_a_mind_that_changes_twice_is_three_feedbacks() -> None:
    ids = FeedbackIds()
    found = [ids.id_of("a", said, key=None, now_s=0.0) for said in (UP, DOWN, UP)]
    assert len({each.event_id for each in found}) == 3
    assert not any(each.is_repeat for each in found)


def test_a_mind_that_changes_with_a_key_in_between_is_three_feedbacks_and_its_retry_none() -> None:
    ids = FeedbackIds()
    said = ((UP, None), (DOWN, "k"), (UP, None), (DOWN, "k"), (UP, None))
    found = [ids.id_of("a", each, key=key, now_s=0.0) for each, key in said]
    assert [each.is_repeat for each in found] == [False, False, False, True, True]
    assert len({each.event_id for each in found}) == 3


def test_the_same_within_seconds_is_one_and_later_it_is_said_anew() -> None:
    ids = FeedbackIds()
    first, is_repeat = ids.id_of("a", UP, key=None, now_s=0.0)
    assert not is_repeat
    assert ids.id_of("a", UP, key=None, now_s=REPEAT_S) == (first, True)
    for request, now_s in (("a", 2 * REPEAT_S + 1), ("b", 0.0)):
        other = ids.id_of(request, UP, key=None, now_s=now_s)
        assert other.event_id != first
        assert not other.is_repeat


def test_a_key_makes_deliveries_one_in_every_worker_whenever_they_come() -> None:
    first, other = FeedbackIds(), FeedbackIds()
    event_id, is_repeat = first.id_of("a", UP, key="k", now_s=0.0)
    assert not is_repeat
    assert other.id_of("a", UP, key="k", now_s=1e6) == (event_id, False)  # that worker has not counted it
    assert first.id_of("a", UP, key="l", now_s=0.0).event_id != event_id
    assert first.id_of("b", UP, key="k", now_s=0.0).event_id != event_id
    assert first.id_of("a", UP, key="k", now_s=1e6) == (event_id, True)


@pytest.mark.parametrize("outcome", ["resolved", "escalated:tier-2", "a.b_c"])
def test_an_outcome_is_a_name(outcome: str) -> None:
    assert OUTCOME.fullmatch(outcome)


@pytest.mark.parametrize("outcome", ["", "call ada at 5", "x" * 65, "resolved\n", "né"])
def test_an_outcome_is_no_text(outcome: str) -> None:
    assert OUTCOME.fullmatch(outcome) is None
