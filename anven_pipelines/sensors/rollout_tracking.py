"""Brings MLflow to where the audit log has rollouts, in a run of its own.

MLflow is asked neither in a sensor's tick nor in a rollout's step on its way to the gateway, so it delays no roll back.
"""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.resources.rollout_tracking import RolloutTracking
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.sensors.notices import is_under_way

TRACKING_TAG = "anven/rollout_tracking"


class TrackRolloutOf(dg.Config):
    """Whose rollout is tracked."""

    workload: str


@dg.op
def track_rollout(context: dg.OpExecutionContext, config: TrackRolloutOf, rollout_tracking: RolloutTracking) -> None:
    """Give MLflow what it lacks of a workload's rollout; what it does not take is tried later, by another run."""
    told = rollout_tracking.deliver(config.workload, now=datetime.now(UTC))
    if told.problem:
        context.log.warning("%s: %s", config.workload, told.problem)


# A roll back that waits for a place to run comes first.
@dg.job(tags={"dagster/priority": "-10"}, description="Shows each attempt of a workload's rollout as a run in MLflow.")
def rollout_tracking_job() -> None:
    """Bring MLflow to where the audit log is."""
    track_rollout()


@dg.sensor(job=rollout_tracking_job, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def rollout_tracking(
    context: dg.SensorEvaluationContext, rollouts: Rollouts, rollout_tracking: RolloutTracking
) -> dg.SensorResult:
    """Ask for a delivery for each workload whose rollout MLflow does not show as the audit log has it."""
    requests, problems, now = [], [], datetime.now(UTC)
    for workload in rollouts.begun():
        try:
            if rollout_tracking.is_due(workload, now=now) and not is_under_way(
                context.instance, TRACKING_TAG, workload
            ):
                config = dg.RunConfig(ops={"track_rollout": TrackRolloutOf(workload=workload)})
                key = f"{workload}/{now.isoformat()}"
                requests.append(dg.RunRequest(run_key=key, run_config=config, tags={TRACKING_TAG: workload}))
        except (AnvenError, OSError) as error:
            problems.append(f"{workload}: {error}")
    told = "\n".join(problems) or "MLflow shows all rollouts as the audit log has them, or is not due yet"
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else dg.SkipReason(told))
