"""A look at a rollout as plain JSON, for the command line, the UI and the log."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.rollout import drill_gaps
from anven_pipelines.domain.signature import shared_accounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from anven_pipelines.domain.notice import Notice
    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.domain.rollout_evidence import Assignment, Comparison, Evidence
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus

HISTORY: Final = 20
"""Newest changes that are shown of a rollout."""
_WORDS = {"Advance": "advance", "Hold": "hold", "RollBack": "roll back", "Complete": "complete"}


def drill_report(plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> dict[str, Any]:
    """Return the newest drill, its age in hours, and what is missing in it; `waived` where it gates nothing."""
    drill = status.drill
    return {
        "at": drill.at.isoformat() if drill else None,
        "age_h": round((now - drill.at) / timedelta(hours=1), 2) if drill else None,
        "passed": drill.passed if drill else None,
        "seconds": drill.seconds if drill else None,
        "limit_s": plan.rollout.drill_s,
        "waived": "drill" in plan.rollout.waive,
        "missing": [gap.reason for gap in drill_gaps(drill, plan, now=now)],
    }


def report_of(
    plan: RolloutPlan, before: RolloutStatus, evidence: Evidence, decision: Decision, status: RolloutStatus
) -> dict[str, Any]:
    """Return what was seen, decided and done.

    Args:
        plan: What the rollout aims at.
        before: Where it stood when it was looked at.
        evidence: What production showed.
        decision: What follows.
        status: Where it stands after that.
    """
    widened = plan.stages[before.stage].widened if before.stage is not None else 1.0
    dealt = evidence.assignment
    return {
        "workload": plan.workload,
        "decision": _WORDS[type(decision).__name__],
        "reasons": list(decision.reasons),
        "phase": status.phase,
        "attempt": status.attempt,
        "generation": status.generation,
        "stage": status.stage,
        "stages": [stage.share for stage in plan.stages],
        "share": status.share(plan),
        "entered_at": status.entered_at.isoformat() if status.entered_at else None,
        "as_of": evidence.as_of.isoformat() if evidence.as_of else None,
        "problem": evidence.problem,
        "breaker": evidence.breaker,
        "flags": [
            {"id": flag.id, "who": flag.who, "reason": flag.reason, "at": flag.at.isoformat()} for flag in status.flags
        ],
        "shared_accounts": shared_accounts(status.signed),
        "units": _units(dealt),
        "evidence": [
            {
                "metric": found.metric,
                "found": found.words,
                "harm": found.is_harm,
                "proven": found.is_proven(widened=widened),
                "by_mirrored": bool(found.proven_by(widened=widened)),
                "state": _state(found, widened=widened),
                "waived": found.metric in plan.rollout.waive,
            }
            for found in map(evidence.of, plan.metrics)
        ],
    }


def history_of(changes: Sequence[Notice]) -> list[dict[str, Any]]:
    """Return the newest changes as rows for people, newest first: when, what, the generation and share since, and why.

    Args:
        changes: Of one workload, oldest first, as `notice.notices_of` tells them.
    """
    return [
        {
            "UTC": f"{change.at:%Y-%m-%d %H:%M:%S}",
            "change": change.title.removeprefix(f"{change.workload}: "),
            "generation": change.generation,
            "at the target": "unknown" if change.share is None else percent(change.share),
            "why": "; ".join(change.reasons),
        }
        for change in reversed(changes[-HISTORY:])
    ]


def percent(share: float) -> str:
    """Write a share, to three digits: a stage may have less than a hundredth of the traffic."""
    return f"{share * 100:.3g} %"


def units_words(units: Mapping[str, Any]) -> str:
    """Write the units of a report in words."""
    mirrored = f", {units['mirrored']:,} of these mirrored" if "mirrored" in units else ""
    return f"{units['target']:,} of the target, {units['legacy']:,} of legacy{mirrored}"


def harm_of(changes: Sequence[Notice]) -> tuple[str, ...]:
    """Return what rolled the newest attempt back; nothing where it was not, or another one has begun since."""
    told = [change for change in changes if change.change in ("start", "roll_back")]
    return told[-1].reasons if told and told[-1].change == "roll_back" else ()


def _units(dealt: Assignment | None) -> dict[str, Any] | None:
    """Return how many units were counted; mirrored ones where there are any."""
    if dealt is None:
        return None
    mirrored = {"mirrored": dealt.mirrored} if dealt.mirrored else {}
    return {"target": dealt.target, "legacy": dealt.legacy, "p_value": dealt.p_value, **mirrored}


def _state(found: Comparison, *, widened: float) -> str:
    """Say in a word what is known of a metric."""
    if found.is_harm:
        return "harm"
    if found.unknown is not None:
        return "unknown"
    if found.proven_by(widened=widened):
        return "proven by mirrored requests"
    return "proven" if found.is_proven(widened=widened) else "not proven"
