"""One run in MLflow per record: looked up by its key, completed where it is half made, its twins deleted.

The run of a step is written once. That of a rollout's attempt is brought to where the audit log is, again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.tracking import StepRecord, fit
from anven_pipelines.resources.prompt_registry import point, register

if TYPE_CHECKING:
    from datetime import datetime

    from mlflow import MlflowClient
    from mlflow.entities import Run

    from anven_pipelines.domain.rollout_tracking import Attempt, Point

KEY_TAG: Final = "anven.key"
RECORD_TAG: Final = "anven.record"
SEQ_TAG: Final = "anven.seq"
PRODUCTION_TAG: Final = "rollout.production"
# A request to log a batch may hold 1 MB; escaped, a parameter takes at most 37 kB and a metric 0.5 kB.
PARAMS_PER_REQUEST: Final = 25
METRICS_PER_REQUEST: Final = 1000


class Place(NamedTuple):
    """A run and the experiment it stands in."""

    experiment_id: str
    run_id: str


def deliver(client: MlflowClient, step: StepRecord, *, folder: str | None) -> Place:
    """Find or make the run, give it what it lacks, and end it last: a run that has ended is complete.

    Args:
        client: MLflow.
        step: What the run tracks.
        folder: Where documents of a new experiment go; None for the server's own choice.

    Raises:
        InvalidInput: a run of that key tracks something else.
    """
    experiment = experiment_id(client, step.experiment, folder)
    run = _run_of(client, experiment, step, {RECORD_TAG: step.digest})
    if run.data.tags.get(RECORD_TAG) != step.digest:
        message = (
            f"run {run.info.run_id} already tracks {step.key!r} with other content, so this record of {step.name} "
            "was not added; a step that runs again needs its own key, see step_key(attempt=...)"
        )
        raise InvalidInput(message)
    if run.info.status != step.status:
        _complete(client, run, step)
    return Place(experiment, run.info.run_id)


def follow(client: MlflowClient, attempt: Attempt, *, folder: str | None, waiting: int = 0) -> Place:
    """Bring the run of a rollout's attempt to where the audit log is.

    The number of the newest event is written last, so that a run which was half written is written again; what is
    there stays single: parameters and points of histories are added where they lack, all else is replaced. A run that
    is ahead, as another process knew more of the log, is left alone.

    Args:
        client: MLflow.
        attempt: What the log says of it.
        folder: Where documents of a new experiment go; None for the server's own choice.
        waiting: Records of steps that MLflow does not have yet, of which one may register a prompt that is served.

    Raises:
        UnavailableService: a prompt that is served is not registered and may yet be.
    """
    step = attempt.record
    experiment = experiment_id(client, step.experiment, folder)
    run = _run_of(client, experiment, step, {})
    if int(run.data.tags.get(SEQ_TAG, 0)) < attempt.seq:
        _bring(client, run, attempt, waiting)
    return Place(experiment, run.info.run_id)


def _bring(client: MlflowClient, run: Run, attempt: Attempt, waiting: int) -> None:
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - mlflow is loaded by now

    run_id, fitted, step = run.info.run_id, fit(attempt.record), attempt.record
    params = [Param(name, value) for name, value in fitted.params.items() if name not in run.data.params]
    metrics = [
        Metric(point.name, point.value, _milliseconds(point.at), point.step) for point in _lacking(client, run, attempt)
    ]
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
    for path, text in fitted.documents.items():
        client.log_text(run_id, text, path)
    client.log_batch(run_id, params=params, tags=[RunTag(name, value) for name, value in fitted.tags.items()])
    if step.status != "RUNNING":
        client.set_terminated(run_id, status=step.status, end_time=_milliseconds(step.ended))
    if attempt.production:
        client.set_tag(run_id, PRODUCTION_TAG, _production(client, attempt, waiting))
    client.set_tag(run_id, SEQ_TAG, str(attempt.seq))


def _production(client: MlflowClient, attempt: Attempt, waiting: int) -> str:
    """Point the alias `production` of the prompts at what is served, and say where it is."""
    placed = point(client, "production", attempt.production)
    missing = [name for name, version in placed.items() if version is None]
    if missing and waiting:
        message = f"the version of {', '.join(missing)} that is served is not registered yet; {waiting} records wait"
        raise UnavailableService(message)
    return "; ".join(f"{name} {version or 'is not registered'}" for name, version in placed.items())


def _lacking(client: MlflowClient, run: Run, attempt: Attempt) -> list[Point]:
    """Return the points that the run's histories do not hold."""
    there = {
        (name, point.step)
        for name in {point.name for point in attempt.points} & run.data.metrics.keys()
        for point in client.get_metric_history(run.info.run_id, name)
    }
    return [point for point in attempt.points if (point.name, point.step) not in there]


def experiment_id(client: MlflowClient, name: str, folder: str | None) -> str:
    """Return the id of the experiment of a name; it is made where there is none, its documents in the folder."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - mlflow is loaded by now

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=folder and f"{folder.rstrip('/')}/{name}")
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return found.experiment_id
        raise


def _run_of(client: MlflowClient, experiment_id: str, step: StepRecord, marks: dict[str, str]) -> Run:
    """Find the step's run by its key, or make it; of twins the complete one stays.

    Twins arise when a request to make a run is repeated, or overtaken by a search while a slow server still works on
    it. All who see them choose the same one.
    """
    by_key = f"tags.`{KEY_TAG}` = '{step.key}'"
    found = {run.info.run_id: run for run in client.search_runs([experiment_id], by_key)}
    if not found:
        tags = fit(step).tags | {KEY_TAG: step.key} | marks
        made = client.create_run(experiment_id, start_time=_milliseconds(step.started), tags=tags, run_name=step.name)
        found = {made.info.run_id: made}  # a server that reads from a replica may not find it yet
        found |= {run.info.run_id: run for run in client.search_runs([experiment_id], by_key)}
    run, *twins = sorted(found.values(), key=lambda run: (run.info.status == "RUNNING", run.info.run_id))
    for twin in twins:
        client.delete_run(twin.info.run_id)
    return run


def _complete(client: MlflowClient, run: Run, step: StepRecord) -> None:
    """Give the run what it lacks, and end it at the step's own time."""
    from mlflow.entities import Metric, Param  # noqa: PLC0415 - mlflow is loaded by now

    run_id, fitted, ended = run.info.run_id, fit(step), _milliseconds(step.ended)
    params = [Param(name, value) for name, value in fitted.params.items() if name not in run.data.params]
    metrics = [
        Metric(name, value, timestamp=ended, step=0)
        for name, value in fitted.metrics.items()
        if name not in run.data.metrics
    ]
    for start in range(0, len(params), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_REQUEST])
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
    for path, text in fitted.documents.items():
        client.log_text(run_id, text, path)
    register(client, run_id, step.prompts)
    client.set_terminated(run_id, status=step.status, end_time=ended)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
