"""Looks at every rollout every few seconds and asks for a step where one is due; the step decides for itself."""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.rollout import Hold
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.rollouts import Rollouts

STEP_TAG = "anven/rollout_step"

rollout_step_job = dg.define_asset_job(
    "rollout_step",
    selection=dg.AssetSelection.assets("rollout_status"),
    description="Decides on a rollout's next step on fresh evidence, and takes it.",
)


@dg.sensor(job=rollout_step_job, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def rollout(context: dg.SensorEvaluationContext, migrations: Migrations, rollouts: Rollouts) -> dg.SensorResult:
    """Ask for a step of each rollout that has one to take.

    A workload that cannot be looked at is told and leaves the others alone. A step that is under way is not asked for
    twice, and one that failed is asked for again: the run key carries the generation and how often it was tried.
    """
    requests, told = [], []
    for workload in sorted(migrations.catalogue().declared):
        try:
            found = rollouts.look(workload, now=datetime.now(UTC))
            if not found.before.is_open:
                continue
            told.append(f"{workload}: {'; '.join(found.decision.reasons)}")
            is_due = not isinstance(found.decision, Hold) or rollouts.is_behind(found.plan, found.before)
        except AnvenError as error:
            context.log.warning("%s: %s", workload, error)
            told.append(f"{workload}: {error}")
            continue
        if is_due and (request := _request(context.instance, workload, found.before)):
            requests.append(request)
    return dg.SensorResult(
        run_requests=requests, skip_reason=None if requests else dg.SkipReason("\n".join(told) or "no rollout is open")
    )


def _request(instance: dg.DagsterInstance, workload: str, status: RolloutStatus) -> dg.RunRequest | None:
    """Return the request for the next step; None while one is under way."""
    step = f"{workload}/{status.attempt}/{status.generation}"
    runs = instance.get_runs(filters=dg.RunsFilter(tags={STEP_TAG: step}))
    if any(not run.is_finished for run in runs):
        return None
    return dg.RunRequest(run_key=f"{step}/{len(runs)}", partition_key=workload, tags={STEP_TAG: step})
