"""Brings MLflow to where the audit log has rollouts, in a run of its own.

MLflow is asked neither in a sensor's tick nor in a rollout's step on its way to the gateway, so it delays no roll back.
"""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.resources.rollout_tracking import RolloutTracking
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.sensors.under_way import is_under_way

TRACKING_TAG = "anven/rollout_tracking"
ALL = "all"


class TrackRollouts(dg.Config):
    """Whose rollouts are tracked."""

    workloads: list[str]


@dg.op
def track_rollouts(context: dg.OpExecutionContext, config: TrackRollouts, rollout_tracking: RolloutTracking) -> None:
    """Give MLflow what it lacks of these rollouts; what it does not take is tried later, by another run."""
    for workload in config.workloads:
        try:
            problem = rollout_tracking.deliver(workload, now=datetime.now(UTC)).problem
        except (AnvenError, OSError) as error:  # of one workload: the others are told all the same
            problem = str(error)
        except Exception as error:  # a mistake of ours in one workload must not keep another's run
            context.log.exception("%s cannot be tracked", workload)
            problem = f"{type(error).__name__}: {error}"
        if problem:
            context.log.warning("%s: %s", workload, problem)


# A roll back that waits for a place to run comes first.
@dg.job(tags={"dagster/priority": "-10"}, description="Shows each attempt of a workload's rollout as a run in MLflow.")
def rollout_tracking_job() -> None:
    """Bring MLflow to where the audit log is."""
    track_rollouts()


# A process that loads mlflow takes seconds of a core, which is why one run tells of all, and none is in a hurry.
@dg.sensor(
    job=rollout_tracking_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has MLflow show each attempt of a rollout as a run of the workload's experiment, as the audit log has "
    "it; while MLflow is down it is tried again later.",
)
def rollout_tracking(
    context: dg.SensorEvaluationContext, rollouts: Rollouts, rollout_tracking: RolloutTracking
) -> dg.SensorResult:
    """Ask for one delivery of all rollouts that MLflow does not show as the audit log has them."""
    due, problems, now = [], [], datetime.now(UTC)
    for workload in rollouts.begun():
        try:
            due += [workload] if rollout_tracking.is_due(workload, now=now) else []
        except (AnvenError, OSError) as error:
            problems.append(f"{workload}: {error}")
        except Exception as error:  # as above
            context.log.exception("%s cannot be looked at", workload)
            problems.append(f"{workload}: {type(error).__name__}: {error}")
    if due and not is_under_way(context.instance, {TRACKING_TAG: ALL}):
        config = dg.RunConfig(ops={"track_rollouts": TrackRollouts(workloads=due)})
        request = dg.RunRequest(run_key=now.isoformat(), run_config=config, tags={TRACKING_TAG: ALL})
        return dg.SensorResult(run_requests=[request])
    told = "\n".join(problems) or "MLflow shows all rollouts as the audit log has them, or is not due yet"
    return dg.SensorResult(skip_reason=dg.SkipReason(told))
