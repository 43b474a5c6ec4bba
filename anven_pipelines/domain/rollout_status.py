"""Where a rollout stands, derived from the events of its stream, and the events that change it.

Every change of traffic is one generation: its event is keyed by the generation's number, so that two steps that both
mean to make the next change cannot both be written, however they race. A key that is taken is a decision that was
overtaken. What people write has no such key: a pause or a flag may come between a look and its step, or after a roll
back. What the log holds is folded all the same; an event that came too late changes nothing but the generation that it
took.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.rollout_flag import Flag, closed, opened
from anven_pipelines.domain.signature import person_of
from anven_pipelines.domain.uptime import Uptime, uptime_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.rollout_plan import RolloutPlan

Phase = Literal["not_started", "running", "paused", "rolled_back", "aborted", "completed"]
Change = Literal["started", "advanced", "rolled_back", "aborted", "completed"]

CHANGES: Final[tuple[Change, ...]] = ("started", "advanced", "rolled_back", "aborted", "completed")
"""Kinds of events that begin a generation."""
OVERRIDE_PEOPLE: Final = 2
"""Different people who have to sign an override."""
LONGEST_OVERRIDE: Final = timedelta(hours=24)
CLOCK_SKEW: Final = timedelta(seconds=30)
"""How far ahead of this clock another one may be."""


class Drill(NamedTuple):
    """A rehearsed roll back."""

    at: datetime
    passed: bool
    seconds: float | None
    """Until all traffic was at legacy; None where it never was."""
    uptime: Uptime | None = None
    """Of the machine on which it was rehearsed; None where that is unknown."""

    def age(self, now: datetime, uptime: Uptime | None) -> timedelta:
        """Return how old it is, at least: a clock that was set back since makes it no younger.

        Negative where it is dated ahead of this clock.
        """
        by_clock = now - self.at
        gone_by = uptime.since(self.uptime) if uptime else None
        return by_clock if gone_by is None or by_clock < -CLOCK_SKEW else max(by_clock, gone_by)


class Override(NamedTuple):
    """One person's wish to advance although something is missing."""

    who: str
    at: datetime
    until: datetime
    uptime: Uptime | None
    """Of the machine on which it was signed; None where that is unknown."""

    def counts(self, now: datetime, uptime: Uptime | None) -> bool:
        """Tell whether it has not expired: neither by the clock nor, where that is known, by the time gone by."""
        gone_by = uptime.since(self.uptime) if uptime else None
        by_clock = self.at - CLOCK_SKEW <= now < self.until
        return by_clock and (gone_by is None or gone_by < self.until - self.at)


@dataclass(frozen=True, kw_only=True)
class RolloutStatus:
    """Where a rollout stands.

    Attributes:
        phase: What goes on.
        attempt: Tries of the rollout so far.
        generation: Changes of the traffic so far.
        stage: Place in the plan's stages; None where legacy has all traffic.
        entered_at: When the present generation began; None before the first.
        entered_up: The same moment of the machine on which it began; None where that is unknown.
        plan: Digest of the plan that the attempt began with.
        planned: That plan, as `RolloutPlan.written` gives it; None where the log does not hold it.
        verdict: Hash of the event of the verdict that it began with; None where the log does not hold it.
        prompt: Version of the prompt that its verdict was given for; None where the log does not hold it.
        approvals: Who approved the next stage, in this generation, as `person_of` tells people apart.
        overrides: Who wishes to advance whatever is missing, in this generation; people likewise.
        signed: Person and account of each of these signatures whose account the log holds.
        drill: The newest rehearsal.
        flags: What people saw and nobody has answered yet, oldest first, whatever the attempt.
    """

    phase: Phase = "not_started"
    attempt: int = 0
    generation: int = 0
    stage: int | None = None
    entered_at: datetime | None = None
    entered_up: Uptime | None = None
    plan: str | None = None
    planned: Mapping[str, Any] | None = field(default=None, compare=False)  # `plan` stands for it
    verdict: str | None = None
    prompt: str | None = None
    approvals: frozenset[str] = frozenset()
    overrides: tuple[Override, ...] = ()
    signed: frozenset[tuple[str, str]] = frozenset()
    drill: Drill | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the target may get traffic by it."""
        return self.phase in ("running", "paused", "completed")

    def share(self, plan: RolloutPlan) -> float:
        """Return the target's share of the traffic."""
        return plan.stages[self.stage].share if self.is_open and self.stage is not None else 0.0

    def stayed(self, now: datetime, uptime: Uptime | None) -> timedelta | None:
        """Return how long the present generation has lasted, at least; None before the first.

        Negative where it began ahead of this clock. Where the machine has not been started anew, a clock that was set
        forward meanwhile, or back when the generation began, adds nothing.
        """
        if self.entered_at is None:
            return None
        by_clock = now - self.entered_at
        gone_by = uptime.since(self.entered_up) if uptime else None
        return by_clock if gone_by is None else min(by_clock, gone_by)

    def overriders(self, now: datetime, uptime: Uptime | None = None) -> frozenset[str]:
        """Return who signed an override that has not expired."""
        return frozenset(override.who for override in self.overrides if override.counts(now, uptime))


def stream_of(workload: str) -> str:
    """Return the state stream of a workload's rollout."""
    return f"rollout/{workload}"


def change_key(generation: int) -> str:
    """Return the key of the event that begins a generation."""
    return f"generation-{generation}"


def status_of(events: Iterable[Event]) -> RolloutStatus:
    """Return where the rollout stands after these events, oldest first.

    An event that cannot follow those before it was written by somebody who was overtaken, and gives the target nothing.

    Raises:
        InvalidInput: an event is of no known kind.
    """
    status = RolloutStatus()
    for event in events:  # each rests on those before
        status = followed(status, event)
    return status


def followed(status: RolloutStatus, event: Event) -> RolloutStatus:
    """Return the status after one more event of the log, which may have come too late.

    Raises:
        InvalidInput: it is of no known kind.
    """
    if refusal(status, event.kind) is None:
        return after(status, event.kind, event.payload, at=event.ts)
    # The key of a change is taken: the next one needs the next number.
    return _changed(status, event.payload, event.ts) if event.kind in CHANGES else status


def after(status: RolloutStatus, kind: str, payload: Mapping[str, Any], *, at: datetime) -> RolloutStatus:
    """Return the status after one event.

    Raises:
        InvalidInput: the event is of no known kind, or cannot happen now.
    """
    if kind not in _AFTER:
        message = f"the rollout's stream holds an event {kind!r}; one of {', '.join(_AFTER)} is needed"
        raise InvalidInput(message)
    if reason := refusal(status, kind):
        message = f"the event {kind!r} cannot happen now: {reason}"
        raise InvalidInput(message)
    return _AFTER[kind](status, payload, at)


def refusal(status: RolloutStatus, kind: str) -> str | None:
    """Say why an event of that kind cannot happen now; None where it can."""
    phases: dict[str, tuple[Phase, ...]] = {
        "started": ("not_started", "rolled_back", "aborted"),
        "advanced": ("running",),
        "completed": ("running",),
        "rolled_back": ("running", "paused", "completed"),
        "aborted": ("running", "paused", "completed"),
        "paused": ("running",),
        "resumed": ("paused",),
        "approved": ("running", "paused"),
        "overridden": ("running", "paused"),
        "unkilled": ("not_started", "rolled_back", "aborted"),  # what legacy answered says nothing of the target
    }
    if kind in phases and status.phase not in phases[kind]:
        return f"the rollout is {_named(status.phase)}; one that is {_named(*phases[kind])} is needed"
    if kind in ("advanced", "completed") and status.flags:
        return "; ".join(flag.words for flag in status.flags)
    return None


def _named(*phases: Phase) -> str:
    return " or ".join(phase.replace("_", " ") for phase in phases)


def _changed(status: RolloutStatus, payload: Mapping[str, Any], at: datetime, **fields: Any) -> RolloutStatus:  # noqa: ANN401 - fields of the status
    fresh: dict[str, Any] = {
        "generation": status.generation + 1,
        "entered_at": at,
        "entered_up": uptime_in(payload),
        "approvals": frozenset(),
        "overrides": (),
        "signed": frozenset(),
    }
    return replace(status, **(fresh | fields))


def _started(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    attempt = status.attempt + 1
    began = {"plan": payload["plan"]} | {name: payload.get(name) for name in ("planned", "verdict", "prompt")}
    return _changed(status, payload, at, phase="running", attempt=attempt, stage=0, **began)


def _advanced(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    return _changed(status, payload, at, stage=payload["stage"])


def _ended(phase: Phase) -> Callable[[RolloutStatus, Mapping[str, Any], datetime], RolloutStatus]:
    def ended(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
        return _changed(status, payload, at, phase=phase, stage=status.stage if phase == "completed" else None)

    return ended


def _in_phase(phase: Phase) -> Callable[[RolloutStatus, Mapping[str, Any], datetime], RolloutStatus]:
    def entered(status: RolloutStatus, _: Mapping[str, Any], at: datetime) -> RolloutStatus:
        del at
        return replace(status, phase=phase)

    return entered


def _approved(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    del at
    if payload["generation"] != status.generation:
        return status  # it was meant for another stage
    who = person_of(payload["who"])
    return replace(status, approvals=status.approvals | {who}, signed=_signed(status, who, payload))


def _overridden(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    until = min(datetime.fromisoformat(payload["until"]), at + LONGEST_OVERRIDE)
    if payload["generation"] != status.generation:
        return status
    who = person_of(payload["who"])
    override = Override(who, at, until, uptime_in(payload))
    return replace(status, overrides=(*status.overrides, override), signed=_signed(status, who, payload))


def _signed(status: RolloutStatus, who: str, payload: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return status.signed | ({(who, payload["account"])} if payload.get("account") else set())


def _drilled(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    return replace(status, drill=Drill(at, payload["passed"], payload["seconds"], uptime_in(payload)))


def _flagged(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    return replace(status, flags=opened(status.flags, payload, at=at))


def _unflagged(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    del at
    return replace(status, flags=closed(status.flags, payload))


def _switched(status: RolloutStatus, payload: Mapping[str, Any], at: datetime) -> RolloutStatus:
    """The kill switch and the shadow are the gateway's; the log says who set them."""
    del payload, at
    return status


_AFTER: Final[dict[str, Callable[[RolloutStatus, Mapping[str, Any], datetime], RolloutStatus]]] = {
    "started": _started,
    "advanced": _advanced,
    "rolled_back": _ended("rolled_back"),
    "aborted": _ended("aborted"),
    "completed": _ended("completed"),
    "paused": _in_phase("paused"),
    "resumed": _in_phase("running"),
    "approved": _approved,
    "overridden": _overridden,
    "drilled": _drilled,
    "flagged": _flagged,
    "unflagged": _unflagged,
    "killed": _switched,
    "unkilled": _switched,
    "shadowed": _switched,
}
