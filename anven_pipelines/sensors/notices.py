"""Tells people of rollouts: looks for what was not told yet, and has it sent in a run of its own.

No receiver is ever asked in a sensor's tick or in a rollout's step, so none delays another sensor or a roll back.
"""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.sensors.under_way import is_under_way

NOTICES_TAG = "anven/notices"


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


@dg.sensor(
    job=rollout_notices_job,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has the receivers under rollout.notify (webhook, Slack, e-mail) told of every change of a rollout and "
    "of what holds it, in a run of its own, and again where one does not answer. Turned off, what "
    "happens waits to be told.",
)
def rollout_notices(context: dg.SensorEvaluationContext, rollouts: Rollouts, notices: Notices) -> dg.SensorResult:
    """Ask for a delivery for each workload that has something to tell to a receiver that may be tried."""
    requests, problems, now = [], [], datetime.now(UTC)
    for workload in rollouts.begun():
        try:
            if notices.is_due(workload, now=now) and not is_under_way(context.instance, {NOTICES_TAG: workload}):
                config = dg.RunConfig(ops={"deliver_notices": DeliverTo(workload=workload)})
                key = f"{workload}/{now.isoformat()}"
                requests.append(dg.RunRequest(run_key=key, run_config=config, tags={NOTICES_TAG: workload}))
        except (AnvenError, OSError) as error:
            problems.append(f"{workload}: {error}")
        except Exception as error:  # a mistake of ours in one workload must not keep another's notices
            context.log.exception("%s cannot be looked at", workload)
            problems.append(f"{workload}: {type(error).__name__}: {error}")
    told = "\n".join(problems) or "nothing is to be told, or its receivers are not due yet"
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else dg.SkipReason(told))
