"""What a decision becomes: the event that is written, and the route that the gateway follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.domain.rollout import Advance, Complete, Hold, RollBack
from anven_pipelines.domain.rollout_status import change_key
from anven_pipelines.domain.sign_off import SIGNED_OFF
from anven_pipelines.domain.signed_target import other_target
from anven_pipelines.domain.traffic import Route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.domain.rollout_evidence import Evidence
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import Change, RolloutStatus


class Step(NamedTuple):
    """One event of a rollout's stream; the key lets each generation begin once."""

    kind: Change
    key: str
    payload: dict[str, Any]


def step_of(decision: Decision, status: RolloutStatus, evidence: Evidence) -> Step | None:
    """Return the event that carries a decision out; None where it changes nothing.

    Args:
        decision: What was decided.
        status: What it was decided on: the event begins the generation after this one, or none does.
        evidence: What it rests on, written down with it.
    """
    rests_on = {
        "reasons": list(decision.reasons),
        "evidence": [found.words for found in evidence.comparisons],
        "measured": {found.metric: found.numbers for found in evidence.comparisons if found.numbers},
        "as_of": evidence.as_of.isoformat() if evidence.as_of else None,
    }
    key = change_key(status.generation + 1)
    match decision:
        case Hold():
            return None
        case Advance(stage):
            return Step("advanced", key, {"stage": stage} | rests_on)
        case RollBack():
            return Step("rolled_back", key, {"from_stage": status.stage} | rests_on)
        case Complete():
            return Step("completed", key, rests_on)


def route_of(workload: str, status: RolloutStatus, plan: RolloutPlan | None) -> Route:
    """Return what the gateway has to do in this status; deriving it again gives the same.

    Args:
        workload: Its name.
        status: Where its rollout stands.
        plan: The plan of an open attempt; without one legacy has all traffic.
    """
    return Route(
        workload=workload,
        attempt=status.attempt,
        generation=status.generation,
        stage=status.stage or 0,
        share=0.0 if plan is None else status.share(plan),
    )


def start_refusal(verdict: Event | None, status: RolloutStatus, declared: Mapping[str, str | None]) -> str | None:
    """Say why a rollout cannot start; None where it can.

    Args:
        verdict: The newest event of the workload's sign-offs.
        status: Where its rollout stands.
        declared: The target that its migration file declares, as `signed_target.declared_target` returns it.
    """
    if status.is_open:
        return f"attempt {status.attempt} is {status.phase.replace('_', ' ')}: abort it first"
    if status.flags:
        return f"{'; '.join(flag.words for flag in status.flags)}: `anven rollout unflag` closes it once it is answered"
    if verdict is None:
        return "the workload has no verdict: `anven migrate` reaches one"
    if verdict.kind != SIGNED_OFF:
        return f"its newest verdict, of {verdict.ts:%Y-%m-%d %H:%M} UTC, is not GO"
    return other_target(verdict.payload, declared)
