"""The canary controller: roll back on proven harm, hold on missing proof, advance on proof.

It may look as often as it likes: every bound it is given holds at all looks together. What was not measured is
neither harm nor proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from anven_pipelines.domain.rollout_prompt import mixed_prompts, other_prompt
from anven_pipelines.domain.rollout_status import CLOCK_SKEW, OVERRIDE_PEOPLE
from anven_pipelines.domain.rollout_top_up import few_units, top_up_words

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_evidence import Assignment, Evidence
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import Drill, RolloutStatus
    from anven_pipelines.domain.uptime import Uptime
    from anven_pipelines.spec_rollout import Stage

Kind = Literal["wait", "person", "unknown", "stopped"]

MISMATCH_P: Final = 0.001
"""A planned share is refuted at this p-value of all looks together; it is a fault of the gateway, not of the target."""
MOST_MOVED: Final = 0.001
"""Share of units that may be asked of both arms under one share, before the assignment is not what it says."""


@dataclass(frozen=True)
class Gap:
    """What is missing for the next step.

    Attributes:
        kind: `wait`: time or traffic will bring it; `person`: somebody has to act; `unknown`: a source has to answer;
            `stopped`: something is wrong with the rollout itself.
        reason: What was found and what is needed.
        until: When it can be there at the earliest; None where nobody knows.
    """

    kind: Kind
    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class Advance:
    """Enter the next stage."""

    stage: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Hold:
    """Change nothing."""

    gaps: tuple[Gap, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is missing, in words."""
        return tuple(gap.reason for gap in self.gaps)


@dataclass(frozen=True)
class RollBack:
    """Give all traffic back to legacy."""

    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Complete:
    """The stability epoch is over: legacy may be decommissioned, and rolling back stays one step away until then."""

    reasons: tuple[str, ...]


Decision = Advance | Hold | RollBack | Complete


def decide(
    plan: RolloutPlan, status: RolloutStatus, evidence: Evidence, *, now: datetime, uptime: Uptime | None = None
) -> Decision:
    """Decide on the next step of a rollout.

    Args:
        plan: What the rollout aims at.
        status: Where it stands.
        evidence: What production showed in the present generation.
        now: The controller's clock, with its time zone.
        uptime: The same moment of the controller's machine, which shows a clock that was set; None where unknown.

    Returns:
        Proven harm and a tripped breaker roll back from every phase in which the target has traffic, whatever else is
        missing or overridden. Otherwise anything that is missing holds. An override by OVERRIDE_PEOPLE people stands in
        for proof, time and traffic; it starts nothing that is paused, answers no flag, and approves nothing.
    """
    if not status.is_open or status.stage is None or status.entered_at is None:
        return Hold((Gap("person", f"the rollout is {_words(status.phase)}: nothing goes on until it is started"),))
    if breaches := proven_breaches(plan, status, evidence):
        return RollBack(breaches)
    if status.phase == "completed":
        return Hold((Gap("wait", "the rollout is completed: production is watched for harm"),))
    if gaps := blocking_gaps(plan, status, evidence):
        return Hold(gaps)
    gaps = missing_proof(plan, status, evidence, now=now, uptime=uptime)
    if unanswered := people_gaps(plan, status):
        return Hold((*gaps, *unanswered))
    return _advance_or_hold(plan, status.stage, gaps, status.overriders(now, uptime), evidence)


def _advance_or_hold(
    plan: RolloutPlan, place: int, gaps: tuple[Gap, ...], signed: frozenset[str], evidence: Evidence
) -> Decision:
    if gaps and len(signed) < OVERRIDE_PEOPLE:
        return Hold(gaps)
    overridden = f"overridden by {', '.join(sorted(signed))}"
    reasons = tuple(f"{overridden}: {gap.reason}" for gap in gaps) or _proofs(plan, evidence, plan.stages[place])
    return Complete(reasons) if place + 1 == len(plan.stages) else Advance(place + 1, reasons)


def proven_breaches(plan: RolloutPlan, status: RolloutStatus, evidence: Evidence) -> tuple[str, ...]:
    """Return what is proven to be wrong with the target, in words.

    Evidence of another generation speaks of other traffic, and what a source knows in part may be the worse part.
    """
    if evidence.generation != status.generation:
        return ()
    breaches = [f"the gateway's breaker tripped: {evidence.breaker}"] if evidence.breaker else []
    if evidence.problem is None:
        breaches += [found.harm_words for found in map(evidence.of, plan.metrics) if found.is_harm]
    return tuple(breaches)


def blocking_gaps(plan: RolloutPlan, status: RolloutStatus, evidence: Evidence) -> tuple[Gap, ...]:
    """Return what no override lifts."""
    gaps = []
    if status.phase == "paused":
        gaps.append(Gap("person", "the rollout is paused: `anven rollout resume` lets it go on"))
    if evidence.killed is not None:
        gaps.append(Gap("person", evidence.killed))
    if evidence.refuted is not None:
        gaps.append(Gap("person", evidence.refuted))
    edited = plan.edited or ("the migration file's rollout changed" if status.plan != plan.digest else None)
    if edited is not None:
        mend = "since this attempt began: abort it and start anew, or restore the file"
        gaps.append(Gap("stopped", f"{edited} {mend}"))
    if asked := other_prompt(status, evidence):
        gaps.append(Gap("stopped", asked))
    return tuple(gaps)


def people_gaps(plan: RolloutPlan, status: RolloutStatus) -> tuple[Gap, ...]:
    """Return what only people can answer: no override does, nor does any proof."""
    flags = (
        Gap("person", f"{flag.words}: `anven rollout unflag` closes it once it is answered") for flag in status.flags
    )
    return (*_approval_gaps(plan, status), *flags)


def missing_proof(
    plan: RolloutPlan, status: RolloutStatus, evidence: Evidence, *, now: datetime, uptime: Uptime | None = None
) -> tuple[Gap, ...]:
    """Return everything that is missing for the next step and that an override lifts; empty where all is proven."""
    stayed = status.stayed(now, uptime)
    if status.stage is None or stayed is None:
        return (Gap("person", "the rollout has not begun"),)
    stage, rollout = plan.stages[status.stage], plan.rollout
    gaps = [
        *_time_gaps(stage, stayed=stayed, now=now),
        *([] if "drill" in rollout.waive else drill_gaps(status.drill, plan, now=now, uptime=uptime)),
    ]
    if evidence.capacity:
        gaps.append(Gap("person", f"capacity for the next stage: {evidence.capacity}"))
    if problem := unknown_because(plan, status, evidence, now=now):
        return (*gaps, Gap("unknown", problem))
    if evidence.lost:
        gaps.append(Gap("unknown", evidence.lost))
    if mixed := mixed_prompts(status, evidence):
        gaps.append(Gap("stopped", mixed))
    gaps += _assignment_gaps(plan, stage, evidence.assignment)
    if plan.is_blind and plan.gating:
        return (*gaps, Gap("person", _blind(plan)))
    for metric in plan.gating:
        found = evidence.of(metric)
        if not found.is_proven(widened=stage.widened):
            told = f"not proven: {found.words}{'' if found.unknown else _widened(stage)}"
            gaps.append(Gap("unknown" if found.unknown else "wait", told))
    return tuple(gaps)


def unknown_because(plan: RolloutPlan, status: RolloutStatus, evidence: Evidence, *, now: datetime) -> str | None:
    """Say why the evidence as a whole says nothing of this moment; None where it does."""
    if evidence.problem is not None:
        return evidence.problem
    if evidence.generation != status.generation:
        return f"the evidence is of generation {evidence.generation}, the traffic of generation {status.generation}"
    if evidence.as_of is None:
        return "no event has come yet"
    if evidence.as_of > now + CLOCK_SKEW:
        return f"the newest event is dated {evidence.as_of - now} ahead of this clock: check the clocks"
    if now - evidence.as_of > plan.rollout.stale:
        return f"the newest evidence is {_short(now - evidence.as_of)} old, at most {_short(plan.rollout.stale)} counts"
    return None


def drill_gaps(drill: Drill | None, plan: RolloutPlan, *, now: datetime, uptime: Uptime | None = None) -> list[Gap]:
    """Return what is missing in the rehearsal of a roll back."""
    how = "`anven drill` rehearses one"
    if drill is None:
        return [Gap("person", f"no roll back was rehearsed: {how}")]
    if not drill.passed or drill.seconds is None:
        return [Gap("person", f"the last rehearsed roll back failed: {how}")]
    if drill.seconds > plan.rollout.drill_s:
        found = (
            f"the last rehearsed roll back took {drill.seconds:.1f} s, at most {plan.rollout.drill_s:g} s is allowed"
        )
        return [Gap("person", f"{found}: {how}")]
    if not timedelta(0) <= drill.age(now, uptime) + CLOCK_SKEW <= plan.rollout.drill_age + CLOCK_SKEW:
        return [Gap("person", f"the last rehearsed roll back is of {drill.at:%Y-%m-%d %H:%M} UTC: {how}")]
    return []


def _time_gaps(stage: Stage, *, stayed: timedelta, now: datetime) -> list[Gap]:
    if stayed < timedelta(0):
        return [Gap("unknown", f"the stage was entered {_short(-stayed)} ahead of this clock: check the clocks")]
    if stayed < stage.soak:
        reason = f"{_short(stayed)} of {_short(stage.soak)} in this stage"
        return [Gap("wait", reason, until=now - stayed + stage.soak)]
    return []


def _approval_gaps(plan: RolloutPlan, status: RolloutStatus) -> list[Gap]:
    coming = (status.stage or 0) + 1
    needed = plan.stages[coming].approvals if coming < len(plan.stages) else 0
    if len(status.approvals) >= needed:
        return []
    found = f"{len(status.approvals)} of {needed} people approved the next stage"
    return [Gap("person", f"{found}: `anven rollout approve`")]


def _assignment_gaps(plan: RolloutPlan, stage: Stage, found: Assignment | None) -> list[Gap]:
    if found is None:
        return [Gap("unknown", "how traffic was dealt to the arms is unknown")]
    gaps = [Gap("wait", reason) for reason in few_units(plan, stage, found)]
    if found.p_value is not None and found.p_value < MISMATCH_P:
        reason = (
            f"sample ratio mismatch: {found.target:,} of {found.target + found.legacy:,} units at the target, planned "
            f"share {stage.share:g} (p = {found.p_value:.1g}): the gateway loses or misdeals traffic"
        )
        gaps.append(Gap("stopped", reason))
    if found.moved > MOST_MOVED * (found.target + found.legacy):
        gaps.append(Gap("stopped", f"{found.moved:,} units were asked of both arms: their assignment does not stick"))
    if found.fell_back > plan.rollout.fallback * found.target:
        reason = (
            f"legacy answered for {found.fell_back:,} of {found.target:,} units of the target, at most "
            f"{plan.rollout.fallback:.1%} may be: the target is not seen at its own"
        )
        gaps.append(Gap("stopped", reason))
    return gaps


def _proofs(plan: RolloutPlan, evidence: Evidence, stage: Stage) -> tuple[str, ...]:
    waived = [f"{name} is waived" for name in plan.rollout.waive]
    proofs = (evidence.of(metric) for metric in plan.gating)
    told = [f"{found.words}{_widened(stage)}{found.proven_by(widened=stage.widened)}" for found in proofs]
    topped_up = top_up_words(plan, evidence.assignment)
    return (*told, *([] if topped_up is None else [topped_up]), *waived)


def _blind(plan: RolloutPlan) -> str:
    return (
        f"legacy has no traffic beside the target in any stage, so {', '.join(plan.gating)} cannot be proven: waive "
        "them in the migration file, or have two people sign `anven rollout override`; `blue_green` proves them"
    )


def _widened(stage: Stage) -> str:
    return f" x {stage.widened:g} in this stage" if stage.widened > 1 else ""


def _short(span: timedelta) -> str:
    """Write a span in its largest fitting unit."""
    seconds = span.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _words(phase: str) -> str:
    return phase.replace("_", " ")
