"""Where a rollout stands: people and steps write at the same time, and no order of it may stop the log being read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.events import GENESIS, Event, Head, follow
from anven_pipelines.domain.rollout_flag import flag_to_close
from anven_pipelines.domain.rollout_status import CHANGES, RolloutStatus, after, change_key, status_of
from anven_pipelines.domain.signature import person_of, shared_accounts

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
STARTED = ("started", {"plan": "p"})
ADVANCED = ("advanced", {"stage": 1})


def folded(*written: tuple[str, dict[str, Any]]) -> RolloutStatus:
    """Fold events that were written at once after another, each change with the next number."""
    events: list[Event] = []
    generation = 0
    for at, (kind, payload) in enumerate(written):
        generation += kind in CHANGES
        key = change_key(generation) if kind in CHANGES else f"{kind}-{at}"
        now = NOW + timedelta(seconds=at)
        head = Head(events[-1].seq, events[-1].hash) if events else GENESIS
        event = follow(head, stream="rollout/support", kind=kind, key=key, payload=payload, now=now)
        events.append(event)
    return status_of(events)


@pytest.mark.parametrize("kind", ["advanced", "completed"])
def test_a_step_that_was_decided_before_a_pause_gives_nothing_and_takes_its_number(kind: str) -> None:
    status = folded(STARTED, ("paused", {}), (kind, {"stage": 1}))

    assert (status.phase, status.stage, status.generation) == ("paused", 0, 2)
    assert folded(STARTED, ("paused", {}), (kind, {"stage": 1}), ("rolled_back", {})).phase == "rolled_back"


@pytest.mark.parametrize("kind", ["advanced", "completed"])
def test_a_step_that_was_decided_before_a_flag_gives_nothing_and_takes_its_number(kind: str) -> None:
    late = (STARTED, ("flagged", FLAGGED), (kind, {"stage": 1}))

    assert (folded(*late).phase, folded(*late).stage, folded(*late).generation) == ("running", 0, 2)
    assert folded(*late, ("rolled_back", {})).phase == "rolled_back"
    assert folded(*late, ("unflagged", FLAGGED), ADVANCED).stage == 1


@pytest.mark.parametrize("kind", ["paused", "resumed", "approved", "overridden"])
def test_what_people_write_after_a_roll_back_changes_nothing(kind: str) -> None:
    before = folded(STARTED, ("rolled_back", {}))

    assert folded(STARTED, ("rolled_back", {}), (kind, {"who": "ada", "generation": 1, "until": ""})) == before


def test_two_people_may_pause_and_resume_at_once() -> None:
    status = folded(STARTED, ("paused", {}), ("paused", {}), ("resumed", {}), ("resumed", {}), ADVANCED)

    assert (status.phase, status.stage, status.generation) == ("running", 1, 2)


# The ends of some ranges of Default_Ignorable_Code_Point, of the categories Cf, Mn, Lo and Cn.
UNSEEN = [f"a{sign}da" for sign in "\u00ad\u034f\u115f\u17b5\u180f\u206f\u3164\ufe0f\uffa0\ufff0\U000e0100\U000e0fff"]


@pytest.mark.parametrize("spelled", ["Ada", "ada ", " ADA", "\uff41da", "a\u200bda", "ada\u00a0", "ada", *UNSEEN])
def test_one_person_signs_once_however_the_name_is_spelled(spelled: str) -> None:
    def signed(kind: str) -> RolloutStatus:
        told = {"generation": 1, "until": "2026-03-04T13:00:00+00:00"}
        return folded(STARTED, (kind, {"who": "ada", **told}), (kind, {"who": spelled, **told}))

    assert signed("approved").approvals == {"ada"}
    assert signed("overridden").overriders(NOW + timedelta(seconds=5)) == {"ada"}


def test_an_accent_that_nobody_sees_apart_from_its_letter_makes_no_other_person() -> None:
    assert person_of("Jose\u034f\u0301") == person_of("Jos\u00e9") == "jos\u00e9"
    assert person_of("Jose") != person_of("Jos\u00e9")


def test_people_who_sign_from_one_account_are_known_until_the_next_change() -> None:
    ada, bo = ({"who": who, "generation": 1, "account": "svc"} for who in ("Ada", "bo"))
    status = folded(STARTED, ("approved", ada), ("approved", bo), ("approved", {"who": "cy", "generation": 1}))

    assert status.approvals == {"ada", "bo", "cy"}
    assert shared_accounts(status.signed) == {"svc": ["ada", "bo"]}
    assert shared_accounts(folded(STARTED, ("approved", ada), ("approved", ada)).signed) == {}
    assert folded(STARTED, ("approved", ada), ADVANCED).signed == frozenset()


FLAGGED = {"flag": "3fa81c02", "who": "dr-li", "reason": "doses are wrong"}


def test_a_flag_is_open_until_somebody_closes_it_whatever_becomes_of_the_attempt() -> None:
    again = folded(("flagged", FLAGGED), STARTED, ADVANCED, ("flagged", FLAGGED), ("rolled_back", {}), STARTED)

    assert [(flag.id, flag.who, flag.reason, flag.at) for flag in again.flags] == [(*FLAGGED.values(), NOW)]
    closed = folded(STARTED, ("flagged", FLAGGED), ("unflagged", {"flag": "another"}), ("unflagged", FLAGGED))
    assert closed.flags == ()
    assert (closed.phase, closed.generation) == ("running", 1)


def test_a_flag_that_is_closed_is_one_that_is_open() -> None:
    flags = folded(("flagged", FLAGGED), ("flagged", FLAGGED | {"flag": "77aa00bb"})).flags

    assert flag_to_close(flags, "77aa00bb") == "77aa00bb"
    assert flag_to_close(flags[:1], None) == "3fa81c02"
    for found, wanted, message in (
        (flags, None, "flag is missing"),
        (flags, "x", "flag is 'x'"),
        ((), None, "none is"),
    ):
        with pytest.raises(InvalidInput, match=message):
            flag_to_close(found, wanted)


def test_an_event_of_no_known_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="holds an event 'nonsense'"):
        folded(STARTED, ("nonsense", {}))
    with pytest.raises(InvalidInput, match="cannot happen now"):
        after(RolloutStatus(), "paused", {}, at=NOW)
