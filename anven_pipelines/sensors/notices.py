"""Tells people of rollouts: looks for what was not told yet, and has it sent in a run of its own.

No receiver is ever asked in a sensor's tick or in a rollout's step, so none delays another sensor or a roll back.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.rollouts import Rollouts

NOTICES_TAG = "anven/notices"
PATIENCE: Final = timedelta(minutes=10)
"""A delivery that is under way for longer is taken for dead; where it lives all the same, its lock keeps others out."""
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class DeliverTo(dg.Config):
    """Whose notices are sent."""

    workload: str


@dg.op
def deliver_notices(context: dg.OpExecutionContext, config: DeliverTo, notices: Notices) -> None:
    """Send what waits to each receiver of a workload; what fails is tried again later, by another run."""
    for found in notices.deliver(config.workload, now=datetime.now(UTC)):
        if found["problem"]:
            context.log.warning("%s: %s; %d notices wait", config.workload, found["problem"], found["waiting"])


# A roll back that waits for a place to run comes first.
@dg.job(tags={"dagster/priority": "-10"}, description="Tells the receivers of a workload's rollout what happened.")
def rollout_notices_job() -> None:
    """Send the notices that wait."""
    deliver_notices()


@dg.sensor(job=rollout_notices_job, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def rollout_notices(context: dg.SensorEvaluationContext, rollouts: Rollouts, notices: Notices) -> dg.SensorResult:
    """Ask for a delivery for each workload that has something to tell to a receiver that may be tried."""
    requests, problems, now = [], [], datetime.now(UTC)
    for workload in rollouts.begun():
        try:
            if notices.is_due(workload, now=now) and not is_under_way(context.instance, NOTICES_TAG, workload):
                config = dg.RunConfig(ops={"deliver_notices": DeliverTo(workload=workload)})
                key = f"{workload}/{now.isoformat()}"
                requests.append(dg.RunRequest(run_key=key, run_config=config, tags={NOTICES_TAG: workload}))
        except (AnvenError, OSError) as error:
            problems.append(f"{workload}: {error}")
    told = "\n".join(problems) or "nothing is to be told, or its receivers are not due yet"
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else dg.SkipReason(told))


def is_under_way(instance: dg.DagsterInstance, tag: str, workload: str) -> bool:
    """Tell whether a run with that tag goes on for a workload; one that was killed may stay unfinished for ever."""
    filters = dg.RunsFilter(tags={tag: workload}, statuses=_UNFINISHED)
    oldest = datetime.now(UTC) - PATIENCE
    return any(record.create_timestamp > oldest for record in instance.get_run_records(filters=filters))
