"""Looks at every rollout every few seconds and asks for a step where one is due; the step decides for itself."""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.rollout import Hold
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.resources.rollouts import Look, Rollouts
from anven_pipelines.resources.uptime import uptime

STEP_TAG = "anven/rollout_step"
PATIENCE: Final = timedelta(minutes=5)
"""A step that is under way for longer is taken for dead: a killed run stays STARTED, as no launcher need notice it.

It takes seconds once it runs, and one that lives all the same may decide beside the next: the log takes one of both.
"""

rollout_step_job = dg.define_asset_job(
    "rollout_step",
    selection=dg.AssetSelection.assets("rollout_status"),
    description="Decides on a rollout's next step on fresh evidence, and takes it.",
)


class _Glance(NamedTuple):
    """What one workload's rollout asks for."""

    told: str | None = None
    request: dg.RunRequest | None = None
    found: Look | None = None


@dg.sensor(job=rollout_step_job, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def rollout(context: dg.SensorEvaluationContext, rollouts: Rollouts) -> dg.SensorResult:
    """Ask for a step of each rollout that has one to take.

    Every rollout that ever began is looked at, whatever has become of its migration file. A workload that cannot be
    looked at is told and leaves the others alone. A step that is under way is not asked for twice, and one that failed,
    or was killed, is asked for again: the run key carries the generation and how often it was tried.
    """
    glances = []
    for workload in rollouts.begun():
        try:
            glances.append(_glance(context.instance, rollouts, workload))
        except AnvenError as error:
            context.log.warning("%s: %s", workload, error)
            glances.append(_Glance(f"{workload}: {error}"))
        except Exception as error:  # a mistake of ours in one workload must not keep another from its roll back
            context.log.exception("%s cannot be looked at", workload)
            glances.append(_Glance(f"{workload}: {type(error).__name__}: {error}"))
    _note_holds(context, rollouts, [glance.found for glance in glances if glance.found])
    requests = [glance.request for glance in glances if glance.request]
    told = "\n".join(glance.told for glance in glances if glance.told)
    return dg.SensorResult(
        run_requests=requests, skip_reason=None if requests else dg.SkipReason(told or "no rollout is open")
    )


def _glance(instance: dg.DagsterInstance, rollouts: Rollouts, workload: str) -> _Glance:
    status = rollouts.status(workload)
    if not status.is_open:
        rollouts.require_known(workload)
        if not rollouts.is_behind(workload, status):
            return _Glance()
        told = f"{workload}: {status.phase.replace('_', ' ')}, which the gateway does not know yet"
        return _Glance(told, _request(instance, workload, status))
    found = rollouts.look(workload, now=datetime.now(UTC), uptime=uptime())
    is_due = not isinstance(found.decision, Hold) or rollouts.is_behind(workload, found.before)
    request = _request(instance, workload, found.before) if is_due else None
    return _Glance(f"{workload}: {'; '.join(found.decision.reasons)}", request, found)


def _note_holds(context: dg.SensorEvaluationContext, rollouts: Rollouts, looks: list[Look]) -> None:
    """Write down for people what holds each rollout; whatever goes wrong with that moves nothing."""
    for found in looks:
        try:
            rollouts.note_hold(found.plan.workload, found, now=datetime.now(UTC))
        except Exception:  # a notice must not keep a roll back waiting
            context.log.exception("what holds %s was not written down", found.plan.workload)


def _request(instance: dg.DagsterInstance, workload: str, status: RolloutStatus) -> dg.RunRequest | None:
    """Return the request for the next step; None while one is under way."""
    step = f"{workload}/{status.attempt}/{status.generation}"
    records = instance.get_run_records(filters=dg.RunsFilter(tags={STEP_TAG: step}))
    oldest = datetime.now(UTC) - PATIENCE
    if any(not each.dagster_run.is_finished and each.create_timestamp > oldest for each in records):
        return None
    return dg.RunRequest(run_key=f"{step}/{len(records)}", partition_key=workload, tags={STEP_TAG: step})
