"""What people are told of each change of a rollout, and what holds are worth telling."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from anven_pipelines.domain.events import GENESIS, Event, Head, follow
from anven_pipelines.domain.notice import HELD, HOLD_EVERY, new_hold, notices_of
from anven_pipelines.domain.rollout import Gap, Hold
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.spec_rollout import Rollout, Stage

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
STAGES = [Stage(share=0.05, soak=timedelta(hours=24)), Stage(share=1.0, soak=timedelta(hours=48), approvals=2)]
PLAN = RolloutPlan(workload="support", rollout=Rollout(stages=STAGES), metrics=METRICS)
STARTED = ("started", {"who": "ada", "plan": PLAN.digest, "planned": PLAN.written()})
RUNNING = RolloutStatus(phase="running", attempt=1, generation=1, stage=0, entered_at=START, plan=PLAN.digest)


def log(*events: tuple[str, dict[str, Any]]) -> list[Event]:
    """Chain events, one an hour."""
    written, head = [], GENESIS
    for number, (kind, payload) in enumerate(events):
        at = START + timedelta(hours=number)
        event = follow(head, stream="rollout/support", kind=kind, key=f"{kind}-{number}", payload=payload, now=at)
        written.append(event)
        head = Head(event.seq, event.hash)
    return written


ROLLED_BACK = ("rolled_back", {"from_stage": 0, "reasons": ["errors is proven to be 3 points worse"]})
OVERRIDDEN = {"generation": 1, "until": "2026-11-20T18:00:00+00:00", "reason": "a launch"}


@pytest.mark.parametrize(
    ("event", "change", "title", "resolution", "share"),
    [
        (
            ("advanced", {"stage": 1, "reasons": ["proven"]}),
            "advance",
            "advanced to stage 2 of 2, 100 % of",
            "complete",
            1,
        ),
        (ROLLED_BACK, "roll_back", "ROLLED BACK, all traffic goes to legacy", "anven rollout start support", 0),
        (("completed", {"reasons": []}), "complete", "rollout completed", "legacy may be decommissioned", 0.05),
        (
            ("paused", {"who": "bo", "reason": "lunch"}),
            "pause",
            "paused by bo in stage 1",
            "anven rollout resume",
            0.05,
        ),
        (("aborted", {"who": "bo", "reason": "enough"}), "abort", "aborted by bo", "legacy has all traffic", 0),
        (("killed", {"who": "bo", "reason": "insults"}), "kill", "KILLED by bo, all traffic", "abort the attempt", 0),
        (("shadowed", {"who": "bo", "shadow": 0.1}), "shadow", "10 % of legacy's requests", "users get legacy's", 0.05),
        (("shadowed", {"who": "bo", "shadow": 0.0}), "shadow", "0 % of legacy's requests", "turns it on again", 0.05),
        (("overridden", {"who": "bo", **OVERRIDDEN}), "override", "signed by bo", "one of 2 people signed", 0.05),
        (
            ("drilled", {"passed": False, "seconds": None, "reasons": ["9 s"]}),
            "drill_failed",
            "a rehearsed roll back FAILED",
            "no stage is left until `anven drill support` passes",
            0.05,
        ),
        (
            (HELD, {"generation": 1, "kinds": ["person", "wait"], "until": None, "reasons": ["flags are open"]}),
            "hold",
            "holds in stage 1 of 2",
            "somebody has to act",
            0.05,
        ),
    ],
)
def test_a_change_is_told_in_words_with_what_is_expected_next(
    event: tuple[str, dict[str, Any]], change: str, title: str, resolution: str, share: float
) -> None:
    events = log(STARTED, event)
    started, notice = notices_of("support", events, after=0)
    assert started.title == "support: rollout started by ada: stage 1 of 2, 5 % of the traffic at the target"
    assert "enter the next stage at 2026-11-21 12:00 UTC at the earliest, and 2 people have to" in started.resolution
    assert (notice.change, notice.share, notice.id) == (change, share, events[1].hash[:32])
    assert title in notice.title
    assert resolution in notice.resolution
    given = event[1].get("reasons") or [each for each in [event[1].get("reason")] if each]
    assert list(notice.reasons) == given
    assert all(part in notice.text for part in (notice.title, notice.resolution, notice.id, *given))
    assert notices_of("support", events, after=events[0].seq) == [notice]


def test_a_flag_is_told_with_how_it_is_closed_and_so_is_its_end() -> None:
    flag = {"flag": "3fa81c02", "who": "dr-li", "reason": "doses are wrong"}
    events = log(STARTED, ("flagged", flag), ("unflagged", flag | {"who": "bo"}), ("unflagged", flag))

    _, opened, closed = notices_of("support", events, after=0)

    assert (opened.change, closed.change) == ("flag", "unflag")
    assert opened.title == "support: dr-li opened flag 3fa81c02"
    assert opened.reasons == ("doses are wrong",)
    assert "`anven rollout unflag support --flag 3fa81c02 --reason ...` closes it" in opened.resolution
    assert closed.title == "support: bo closed flag 3fa81c02"
    assert "enter the next stage at 2026-11-21 12:00 UTC" in closed.resolution


def test_a_resume_is_told() -> None:
    events = log(STARTED, ("paused", {"who": "bo"}), ("resumed", {"who": "cy", "reason": "back"}))
    assert [each.change for each in notices_of("support", events, after=0)] == ["start", "pause", "resume"]


@pytest.mark.parametrize(
    "event",
    [
        ("drilled", {"passed": True, "seconds": 0.3}),
        ("approved", {"who": "ada", "generation": 1}),
        ("resumed", {"who": "ada"}),
        ("started", {"who": "eve", "plan": "other", "planned": None}),
    ],
    ids=["a drill that passed", "an approval", "a resume of what runs", "a start that came too late"],
)
def test_what_changed_nothing_is_not_told(event: tuple[str, dict[str, Any]]) -> None:
    assert [each.change for each in notices_of("support", log(STARTED, event), after=0)] == ["start"]


def test_an_override_that_counts_says_what_it_does() -> None:
    events = log(STARTED, *(("overridden", {"who": who, **OVERRIDDEN}) for who in ("bo", "cy")))
    assert (
        "the next stage is entered whatever proof is missing" in notices_of("support", events, after=0)[-1].resolution
    )


def test_a_plan_of_another_release_and_endless_reasons_are_told_all_the_same() -> None:
    odd = ("started", {"who": "ada", "plan": "x", "planned": {"rollout": {"unheard_of": 1}, "metrics": []}})
    back = ("rolled_back", {"from_stage": 0, "reasons": ["long " * 1000, *map(str, range(50))]})
    started, notice = notices_of("support", log(odd, back), after=0)
    assert started.share is None
    assert len(notice.text) < 2_000
    assert "and 31 more" in notice.text


def gap(kind: Any, reason: str, until: datetime | None = None) -> Hold:
    return Hold((Gap(kind, reason, until),))


WAITING = gap("wait", "3.1 h of 24.0 h in this stage", START + timedelta(hours=24))


def held(hold: Hold, *, at: datetime = START, status: RolloutStatus = RUNNING) -> Event:
    found = new_hold(hold, status, None, now=at)
    assert found is not None
    return follow(GENESIS, stream="hold/support", kind=HELD, key=found.key, payload=found.payload, now=at)


LATER = START + 2 * HOLD_EVERY


@pytest.mark.parametrize(
    ("before", "after", "is_new"),
    [
        (WAITING, gap("wait", "59.0 min of 24.0 h in this stage"), False),
        (WAITING, gap("wait", "not proven: errors 10 points worse (between 10 better and 30 worse)"), False),
        (WAITING, gap("unknown", "no event has come yet"), True),
        (
            gap("unknown", "the newest evidence is 59 s old"),
            gap("unknown", "the newest evidence is 2.0 min old"),
            False,
        ),
        (
            gap("person", "2 flags of domain experts are open"),
            gap("person", "3 flags of domain experts are open"),
            False,
        ),
        (gap("person", "2 flags of domain experts are open"), WAITING, True),
    ],
)
def test_a_hold_is_told_where_its_reason_is_new_and_not_at_each_look(before: Hold, after: Hold, is_new: bool) -> None:
    assert (new_hold(after, RUNNING, held(before), now=LATER) is not None) == is_new


def test_reasons_that_come_and_go_wait_and_what_is_wrong_with_the_rollout_does_not() -> None:
    soon, last = START + HOLD_EVERY / 2, held(WAITING)
    assert new_hold(gap("unknown", "no event has come yet"), RUNNING, last, now=soon) is None
    assert new_hold(gap("stopped", "sample ratio mismatch"), RUNNING, last, now=soon) is not None


def test_each_stage_tells_its_holds_anew_and_a_pause_is_told_as_one() -> None:
    assert new_hold(WAITING, replace(RUNNING, generation=2), held(WAITING), now=START) is not None
    for phase in ("paused", "completed", "rolled_back"):
        assert new_hold(WAITING, replace(RUNNING, phase=phase), None, now=LATER) is None


def test_who_is_told_is_no_part_of_the_plan_that_an_attempt_is_held_to() -> None:
    told = Rollout.model_validate({"stages": STAGES, "notify": [{"kind": "slack", "url_env": "SLACK"}]})
    assert replace(PLAN, rollout=told).digest == PLAN.digest
    assert replace(PLAN, rollout=told).written()["rollout"]["notify"][0]["url_env"] == "SLACK"
