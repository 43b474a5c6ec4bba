"""Has the answers of production judged: looks for what is due, and has it judged in a run of its own.

No judge is ever asked in a sensor's tick or in a rollout's step, so none delays another sensor or a roll back.
"""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.resources.online_judge import OnlineJudges
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.sensors.under_way import is_under_way

JUDGE_TAG = "anven/online_judge"


class JudgeAnswersOf(dg.Config):
    """Whose answers are judged."""

    workload: str


@dg.op(description="Scores the answers of production that are due, and tells the gateway; at most some minutes long.")
def judge_answers(context: dg.OpExecutionContext, config: JudgeAnswersOf, judges: OnlineJudges) -> None:
    """Do one pass; what fails is tried again later, by another run."""
    found = judges.run(config.workload, now=datetime.now(UTC))
    if found is None:
        context.log.info("%s: no rollout with a judge is open; no text is kept", config.workload)
        return
    if found["problem"]:
        context.log.warning("%s: %s", config.workload, found["problem"])
    context.add_output_metadata({name: value for name, value in found.items() if value is not None})


# Roll backs and notices that wait for a place to run come first.
@dg.job(tags={"dagster/priority": "-20"}, description="Scores answers of production by a workload's online judge.")
def online_judge_job() -> None:
    """Judge what is due."""
    judge_answers()


@dg.sensor(
    job=online_judge_job,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has the answers of production scored by the judge under rollout.judge while a rollout is open, in a "
    "run of its own. Turned off, answers have no score: `quality` is unknown, and the rollout holds.",
)
def online_judge(context: dg.SensorEvaluationContext, rollouts: Rollouts, judges: OnlineJudges) -> dg.SensorResult:
    """Ask for a pass for each workload that has something to judge, and say what keeps others from being judged."""
    requests, told, now = [], [], datetime.now(UTC)
    for workload in rollouts.begun():
        try:
            if judges.is_due(workload, now=now):
                if is_under_way(context.instance, {JUDGE_TAG: workload}):
                    continue
                config = dg.RunConfig(ops={"judge_answers": JudgeAnswersOf(workload=workload)})
                key = f"{workload}/{now.isoformat()}"
                requests.append(dg.RunRequest(run_key=key, run_config=config, tags={JUDGE_TAG: workload}))
            elif (found := judges.report(workload, now=now)) and found["problem"]:
                told.append(f"{workload}: {found['problem']}; tried again at {found['next_at'][:19]} UTC")
        except (AnvenError, OSError) as error:
            told.append(f"{workload}: {error}")
        except Exception as error:  # a mistake of ours in one workload must not keep another's answers from the judge
            context.log.exception("%s cannot be looked at", workload)
            told.append(f"{workload}: {type(error).__name__}: {error}")
    words = "\n".join(told) or "nothing is to be judged, or its judge is not due yet"
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else dg.SkipReason(words))
