"""Jobs that people launch: what `anven rollout` does to a canary, from Dagster's Launchpad."""

from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError, InvalidInput
from anven_pipelines.domain.rollout_act import OVERRIDE_HOURS, Act, Verb
from anven_pipelines.domain.rollout_report import report_of
from anven_pipelines.domain.rollout_status import LONGEST_OVERRIDE, RolloutStatus
from anven_pipelines.resources.rollout_acts import perform, what_stands
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.uptime import uptime

_FIELDS: Final = "ops.act_on_rollout.config"
_STAGE_BOUND: Final = ("approve", "override")
"""Acts that let a stage be left: one that is launched again must not let the next one be left as well."""


class RolloutVerb(Enum):
    """The verbs of `domain.rollout_act.Verb`; Dagster's config takes no Literal."""

    start = "start"
    approve = "approve"
    pause = "pause"
    resume = "resume"
    abort = "abort"
    override = "override"
    flag = "flag"
    unflag = "unflag"
    kill = "kill"
    unkill = "unkill"
    shadow = "shadow"


class ActOnRollout(dg.Config):
    """What somebody does to a rollout."""

    workload: str = Field(description="Workload whose rollout it is.")
    act: RolloutVerb = Field(
        description="start: begin a new attempt, which needs a verdict that is GO. approve: let the next stage be "
        "entered once it is proven. pause, resume: hold the ramp, and let it go on; harm is rolled back all the same. "
        "abort: give all traffic back to legacy at once. override: let the next stage be entered whatever proof is "
        "missing, once two people have signed; never over proven harm. flag: hold the ramp until somebody has answered "
        "what you saw, as the reason tells it. unflag: close a flag, with the answer as the reason. kill: have the "
        "gateway give legacy all traffic whatever the rollout says. unkill: turn that off, once no attempt is open. "
        "shadow: have the gateway mirror a share of legacy's requests to the target, whose answers nobody gets."
    )
    who: str = Field(description="Your name, for the audit log; an override needs two different ones.")
    reason: str = Field(default="", description="Why, for the audit log.")
    generation: int | None = Field(
        default=None,
        description="Generation of the traffic that you looked at, as `rollout_status` and `anven rollout status` tell "
        "it; the act is refused once the rollout has moved on. Needed to approve and to override; leave it out of an "
        "abort.",
    )
    hours: float | None = Field(
        default=None,
        description=f"How long an override counts: {OVERRIDE_HOURS:g} where absent, at most "
        f"{LONGEST_OVERRIDE.total_seconds() / 3600:g}. Only with override.",
    )
    flag: str | None = Field(
        default=None,
        description="Flag to close, as `anven rollout status` tells it: the only open one where absent. "
        "Only with unflag.",
    )
    share: float | None = Field(
        default=None,
        description="Share of legacy's requests to mirror, from 0 to 1; 0 ends it. Only with shadow.",
    )


@dg.op(description="Writes what somebody does to a rollout to the audit log, and puts it in force at the gateway.")
def act_on_rollout(context: dg.OpExecutionContext, config: ActOnRollout, rollouts: Rollouts) -> None:
    """Do it once, however often this run is executed anew, and show where the rollout stands then."""
    now, up = datetime.now(UTC), uptime()
    act = _act_of(config, request=context.run.root_run_id or context.run_id)
    _require_sound(act)
    try:
        status = perform(rollouts, act, now=now, uptime=up)
    except InvalidInput as error:
        message = f"{_FIELDS}: {error}; {what_stands(rollouts, act) or 'nothing was written'}"
        raise dg.Failure(message, allow_retries=False) from error
    context.add_output_metadata(_shown(rollouts, act, status, now=now))


@dg.job(
    tags={"dagster/priority": "10"},
    description="Starts, approves, pauses, resumes, aborts, overrides, flags, kills or shadows a rollout.",
)
def rollout_act() -> None:
    """Do what a person wants done to a rollout; it comes before what waits for a place to run."""
    act_on_rollout()


def _act_of(config: ActOnRollout, *, request: str) -> Act:
    verb: Verb = config.act.value
    return Act(
        verb=verb,
        workload=config.workload,
        who=config.who,
        reason=config.reason,
        hours=config.hours,
        generation=config.generation,
        flag=config.flag,
        share=config.share,
        request=request,
    )


def _require_sound(act: Act) -> None:
    """Refuse a config that is wrong by itself, before anything is asked."""
    problems = [f"{_FIELDS}.{problem}" for problem in act.problems()]
    if act.verb in _STAGE_BOUND and act.generation is None:
        problems.append(
            f"{_FIELDS}.generation is missing; to {act.verb} needs the generation that you looked at, which "
            f"`rollout_status` and `anven rollout status {act.workload}` tell"
        )
    if problems:
        raise dg.Failure("; ".join([*problems, "nothing was written"]), allow_retries=False)


def _shown(rollouts: Rollouts, act: Act, status: RolloutStatus, *, now: datetime) -> dict[str, Any]:
    """Return what the UI shows of a rollout after an act; the act stands, whatever keeps it from being looked at."""
    shown: dict[str, Any] = {
        "act": f"{act.verb} by {act.who}",
        "phase": status.phase,
        "attempt": status.attempt,
        "generation": status.generation,
        "approvals": ", ".join(sorted(status.approvals)) or "none",
        "overrides": ", ".join(sorted(status.overriders(now, uptime()))) or "none",
        "flags": "; ".join(flag.words for flag in status.flags) or "none",
    }
    try:
        found = rollouts.look(act.workload, now=now, uptime=uptime())
    except AnvenError as error:
        return shown | {"look": str(error)}
    report = report_of(found.plan, found.before, found.evidence, found.decision, found.status)
    reasons = dg.MetadataValue.md("\n".join(f"- {reason}" for reason in report["reasons"]))
    stage = "none" if report["stage"] is None else f"{report['stage'] + 1} of {len(report['stages'])}"
    return shown | {"share": report["share"], "stage": stage, "decision": report["decision"], "reasons": reasons}
