"""What people are told of a rollout: one notice for each change in its log, in words, with what is expected next.

The audit log is the outbox: a change that was written is told sooner or later, whoever is killed in between, and a
notice that is made twice has the same id. What holds a rollout changes nothing and stands in a stream of its own, once
for each new reason and not for each look.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.rollout_plan import read_plan
from anven_pipelines.domain.rollout_status import OVERRIDE_PEOPLE, RolloutStatus, followed, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.rollout import Hold
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.spec_notify import Notified

HELD: Final = "held"
HOLD_EVERY: Final = timedelta(minutes=10)
"""Shortest time between two notices of holds in one stage; reasons that come and go must not fill a mailbox."""

_MOST_REASONS: Final = 20
_LONGEST: Final = 400
_NUMBER: Final = re.compile(r"[+-]?\d[\d.,:e+-]*( (d|h|min|s)\b)?|[+-]?\binf\b")

NOTIFIED: Final[dict[str, Notified]] = {
    "started": "start",
    "advanced": "advance",
    HELD: "hold",
    "rolled_back": "roll_back",
    "completed": "complete",
    "paused": "pause",
    "resumed": "resume",
    "aborted": "abort",
    "overridden": "override",
    "drilled": "drill_failed",
    "flagged": "flag",
    "unflagged": "unflag",
    "killed": "kill",
    "unkilled": "unkill",
    "shadowed": "shadow",
}
"""What people are told that an event of each kind did."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One change of a rollout, as people are told of it.

    Attributes:
        id: The same whenever the same change is told; receivers leave out what they have.
        seq: Number of its event in the log.
        workload: Whose rollout it is.
        change: What happened.
        at: When.
        title: In a line.
        reasons: Why.
        resolution: What is expected next, and of whom.
        attempt: Of the rollout.
        generation: Of the traffic, after the change.
        share: The target's share of the traffic after the change; None where the plan cannot be read.
    """

    id: str
    seq: int
    workload: str
    change: Notified
    at: datetime
    title: str
    reasons: tuple[str, ...]
    resolution: str
    attempt: int
    generation: int
    share: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, as a webhook gets it."""
        return asdict(self) | {"at": self.at.isoformat(), "reasons": list(self.reasons)}

    @property
    def text(self) -> str:
        """It as plain text."""
        why = "".join(f"\n- {reason}" for reason in self.reasons)
        return f"{self.title}{why}\nNext: {self.resolution}\n({self.at:%Y-%m-%d %H:%M:%S} UTC, id {self.id})"


def hold_stream(workload: str) -> str:
    """Return the state stream of what held a workload's rollout."""
    return f"hold/{workload}"


class Held(NamedTuple):
    """A hold in the form in which it is written down."""

    key: str
    payload: dict[str, Any]


def new_hold(hold: Hold, status: RolloutStatus, last: Event | None, *, now: datetime) -> Held | None:
    """Return the event that a hold is worth; None where nothing new holds the rollout.

    Waiting for time and traffic is one reason, however much is left of it. In a stage a further one comes HOLD_EVERY
    after the last at the earliest, unless something is wrong with the rollout itself.

    Args:
        hold: What was decided.
        status: On what.
        last: The newest event of `hold_stream`.
        now: The clock.
    """
    if status.phase != "running":
        return None  # a pause is told as one, and a completed rollout holds for ever
    shape = sorted({"wait" if gap.kind == "wait" else _NUMBER.sub("#", gap.reason) for gap in hold.gaps})
    if last is not None and last.payload["generation"] == status.generation:
        is_urgent = any(gap.kind == "stopped" for gap in hold.gaps)
        if last.payload["shape"] == shape or (now - last.ts < HOLD_EVERY and not is_urgent):
            return None
    untils = [gap.until for gap in hold.gaps if gap.until is not None]
    payload = {
        "generation": status.generation,
        "shape": shape,
        "reasons": list(hold.reasons),
        "kinds": sorted({gap.kind for gap in hold.gaps}),
        "until": max(untils).isoformat() if untils else None,
    }
    return Held(f"held-{status.generation}-{now.isoformat()}", payload)


def notices_of(workload: str, events: Sequence[Event], *, after: int) -> list[Notice]:
    """Return the notices of the events behind a number, oldest first.

    Args:
        workload: Whose they are.
        events: Of its rollout and of what held it, all of them, in the order of the log.
        after: Number of the last event that was told.
    """
    found, status = [], RolloutStatus()
    for event in events:  # each rests on those before
        before = status
        status = before if event.kind == HELD else followed(before, event)
        if event.seq > after and event.kind in NOTIFIED and (notice := _notice(workload, event, before, status)):
            found.append(notice)
    return found


def _notice(workload: str, event: Event, before: RolloutStatus, status: RolloutStatus) -> Notice | None:
    """Return the notice of an event; None for one that changed nothing, or that passed well."""
    payload = event.payload
    if event.kind != HELD and refusal(before, event.kind) is not None:
        return None  # it came too late
    if event.kind == "unflagged" and status == before:
        return None  # somebody else closed it first
    if event.kind == "drilled" and payload.get("passed"):
        return None
    plan = _plan(workload, status if status.is_open else before)
    share = 0.0 if event.kind == "killed" or not status.is_open else None if plan is None else status.share(plan)
    title, resolution = _WORDS[event.kind](_Told(workload, event, before, status, plan))
    return Notice(
        id=event.hash[:32],
        seq=event.seq,
        workload=workload,
        change=NOTIFIED[event.kind],
        at=event.ts,
        title=title,
        reasons=_reasons(payload),
        resolution=resolution,
        attempt=status.attempt,
        generation=status.generation,
        share=share,
    )


class _Told(NamedTuple):
    workload: str
    event: Event
    before: RolloutStatus
    status: RolloutStatus
    plan: RolloutPlan | None

    @property
    def who(self) -> str:
        return str(self.event.payload.get("who", "somebody"))

    @property
    def place(self) -> str:
        """The stage that the rollout is in, in words."""
        if self.plan is None or self.status.stage is None:
            return "a stage of a plan that this release cannot read"
        share, stages = self.plan.stages[self.status.stage].share, len(self.plan.stages)
        return f"stage {self.status.stage + 1} of {stages}, {share * 100:.3g} % of the traffic at the target"

    @property
    def ahead(self) -> str:
        """When the next step can come."""
        if self.plan is None or self.status.stage is None or self.status.entered_at is None:
            return "the controller goes on by itself, on proof"
        stage, last = self.plan.stages[self.status.stage], self.status.stage + 1 == len(self.plan.stages)
        step = "complete the rollout" if last else "enter the next stage"
        needed = 0 if last else self.plan.stages[self.status.stage + 1].approvals
        people = f", and {needed} people have to approve it (`anven rollout approve {self.workload}`)" if needed else ""
        at = self.status.entered_at + stage.soak
        return f"on proof the controller will {step} at {at:%Y-%m-%d %H:%M} UTC at the earliest{people}"


def _started(told: _Told) -> tuple[str, str]:
    return f"{told.workload}: rollout started by {told.who}: {told.place}", told.ahead


def _advanced(told: _Told) -> tuple[str, str]:
    return f"{told.workload}: advanced to {told.place}", told.ahead


def _held(told: _Told) -> tuple[str, str]:
    kinds, until = told.event.payload["kinds"], told.event.payload["until"]
    step = "it goes on by itself"
    if "stopped" in kinds:
        step = "the ramp is stopped until somebody mends what is wrong"
    elif "person" in kinds:
        step = "somebody has to act"
    elif "unknown" in kinds:
        step = "it goes on by itself once the evidence is there; look at the gateway and its event log if it stays away"
    earliest = f", at {datetime.fromisoformat(until):%Y-%m-%d %H:%M} UTC at the earliest" if until else ""
    return f"{told.workload}: holds in {told.place}", step + earliest


def _rolled_back(told: _Told) -> tuple[str, str]:
    mend = f"legacy has all traffic; mend the cause, then `anven rollout start {told.workload}` begins a new attempt"
    return f"{told.workload}: ROLLED BACK, all traffic goes to legacy", mend


def _aborted(told: _Told) -> tuple[str, str]:
    again = f"legacy has all traffic; `anven rollout start {told.workload}` begins a new attempt"
    return f"{told.workload}: aborted by {told.who}, all traffic goes to legacy", again


def _completed(told: _Told) -> tuple[str, str]:
    resolution = "legacy may be decommissioned; until then production is watched, and rolling back is one step away"
    return f"{told.workload}: rollout completed", resolution


def _paused(told: _Told) -> tuple[str, str]:
    resolution = f"no stage is entered until `anven rollout resume {told.workload}`; harm is rolled back all the same"
    return f"{told.workload}: paused by {told.who} in {told.place}", resolution


def _resumed(told: _Told) -> tuple[str, str]:
    return f"{told.workload}: resumed by {told.who} in {told.place}", told.ahead


def _overridden(told: _Told) -> tuple[str, str]:
    signed = len({override.who for override in told.status.overrides})
    until = f"{datetime.fromisoformat(told.event.payload['until']):%Y-%m-%d %H:%M} UTC"
    if signed < OVERRIDE_PEOPLE:
        resolution = (
            f"one of {OVERRIDE_PEOPLE} people signed; it counts for nothing unless another one does before {until}"
        )
    else:
        resolution = f"the next stage is entered whatever proof is missing, unless harm is proven, before {until}"
    return f"{told.workload}: override signed by {told.who}", resolution


def _drilled(told: _Told) -> tuple[str, str]:
    resolution = f"no stage is left until `anven drill {told.workload}` passes; rolling back may not work as it should"
    return f"{told.workload}: a rehearsed roll back FAILED", resolution


def _flagged(told: _Told) -> tuple[str, str]:
    flag = told.event.payload["flag"]
    answer = f"`anven rollout unflag {told.workload} --flag {flag} --reason ...` closes it"
    resolution = f"no stage is entered until somebody answers it: {answer}; harm is rolled back all the same"
    return f"{told.workload}: {told.who} opened flag {flag}", resolution


def _unflagged(told: _Told) -> tuple[str, str]:
    left = len(told.status.flags)
    resolution = f"{left} flags are open still" if left else told.ahead if told.status.is_open else "no flag is open"
    return f"{told.workload}: {told.who} closed flag {told.event.payload['flag']}", resolution


def _killed(told: _Told) -> tuple[str, str]:
    again = "abort the attempt, mend the cause" if told.status.is_open else "mend the cause"
    resolution = f"{again}, then `anven rollout unkill {told.workload} --reason ...` turns the switch off"
    return f"{told.workload}: KILLED by {told.who}, all traffic goes to legacy", resolution


def _unkilled(told: _Told) -> tuple[str, str]:
    again = f"`anven rollout start {told.workload}` may begin a new attempt"
    return f"{told.workload}: {told.who} turned the kill switch off", again


def _shadowed(told: _Told) -> tuple[str, str]:
    share = told.event.payload["shadow"]
    resolution = "users get legacy's answers all the same; `gateway.shadow` caps what it may cost a day"
    if not share:
        resolution = f"`anven rollout shadow {told.workload} --share ...` turns it on again"
    return (
        f"{told.workload}: {told.who} has {share * 100:.3g} % of legacy's requests mirrored to the target",
        resolution,
    )


_WORDS: Final[dict[str, Callable[[_Told], tuple[str, str]]]] = {
    "started": _started,
    "advanced": _advanced,
    HELD: _held,
    "rolled_back": _rolled_back,
    "completed": _completed,
    "paused": _paused,
    "resumed": _resumed,
    "aborted": _aborted,
    "overridden": _overridden,
    "drilled": _drilled,
    "flagged": _flagged,
    "unflagged": _unflagged,
    "killed": _killed,
    "unkilled": _unkilled,
    "shadowed": _shadowed,
}


def _reasons(payload: dict[str, Any]) -> tuple[str, ...]:
    given = payload.get("reasons") or [payload.get("reason")]
    told = [str(each) for each in given if each]
    more = len(told) - _MOST_REASONS
    shown = [each if len(each) <= _LONGEST else f"{each[: _LONGEST - 3]}..." for each in told[:_MOST_REASONS]]
    return (*shown, *([f"and {more} more: `anven rollout status`"] if more > 0 else []))


def _plan(workload: str, status: RolloutStatus) -> RolloutPlan | None:
    """Return the plan that the attempt began with; None where another release wrote it."""
    return None if status.planned is None else read_plan(workload, status.planned)
