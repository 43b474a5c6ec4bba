"""MLflow: one run per asset step, kept in an outbox until MLflow has it whole.

A record is written to the outbox before MLflow hears of it and removed after its run is complete, so nothing is lost
when MLflow is down or the process is killed. Delivering twice gives one run: it is looked up by the tag `anven.key`
before it is made, a half-made run is completed, and a twin made by a repeated request is deleted.

Time: importing mlflow (1 s, 10 s on a busy machine) and making a new SQLite database (3 s) come once per process and
database. After that `record` returns within `timeout_s`, whatever MLflow does: a closed port costs 0.01 s, a server
that accepts and never answers costs `timeout_s`. MLflow's own seven retries, two minutes each, are off: they would
repeat the request that makes a run, and the outbox is what retries here.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import math
import os
import sqlite3
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, UnavailableService
from anven_pipelines.domain.tracking import StepRecord, fit
from anven_pipelines.resources.environment import keep_private
from anven_pipelines.resources.outbox import Outbox
from anven_pipelines.resources.prompt_registry import register

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from mlflow import MlflowClient
    from mlflow.entities import EvaluationDataset, Run

Result = TypeVar("Result")

KEY_TAG: Final = "anven.key"
RECORD_TAG: Final = "anven.record"
FIRST_USE_S: Final = 60.0  # a new SQLite database runs MLflow's migrations: 3 s, more on a busy machine
FILL_S: Final = 60.0  # for one record, when nobody waits for a step to end
CATCH_UP: Final = 3  # earlier records that a healthy `record` takes along
HEALTHY_S: Final = 1.0
# A request to log a batch may hold 1 MB; escaped, a parameter takes at most 37 kB and a metric 0.5 kB.
PARAMS_PER_REQUEST: Final = 25
METRICS_PER_REQUEST: Final = 1000
MAX_REASON_CHARS: Final = 300


@dataclass(frozen=True)
class Tracked:
    """Where a step's run is, or why it is not there yet."""

    run_id: str | None
    url: str | None
    warning: str | None

    def metadata(self) -> dict[str, dg.MetadataValue]:
        """Return the entries that link the run in an asset's metadata."""
        if self.warning:
            return {"mlflow_warning": dg.MetadataValue.text(self.warning)}
        hint = f"run {self.run_id}; `anven dev` opens MLflow"
        link = dg.MetadataValue.url(self.url) if self.url else dg.MetadataValue.text(hint)
        return {"mlflow_run": link, "mlflow_run_id": dg.MetadataValue.text(str(self.run_id))}


class Filled(NamedTuple):
    """What `fill` did: runs delivered, records still waiting, and one line per problem."""

    delivered: int
    remaining: int
    problems: tuple[str, ...]


class _Place(NamedTuple):
    """A run and the experiment it stands in."""

    experiment_id: str
    run_id: str


class MlflowTracking(dg.ConfigurableResource[None]):
    """MLflow, reached through an outbox: never fails a step, never loses or doubles its record."""

    tracking_uri: str = Field(description="sqlite:///<file>, or the http(s) address of an MLflow server.")
    outbox: str = Field(description="Local folder of records that MLflow does not have yet; outlives the process.")
    artifact_root: str | None = Field(
        default=None,
        description="Folder or URL for new experiments' documents; None: the server's, or beside the database.",
    )
    ui_url: str | None = Field(default=None, description="Address of MLflow's UI where it is not the tracking server.")
    deployment: str | None = Field(default=None, description="Tagged on every run that does not say its own.")
    timeout_s: float = Field(default=5.0, gt=0, description="How long a step waits for MLflow before it goes on.")

    def record(self, step: StepRecord) -> Tracked:
        """Track one step. Never raises; with MLflow down it returns a warning, and `fill` adds the run later.

        When MLflow took the record within a second, up to three earlier records are delivered too, in what is left
        of `timeout_s`, so that an outage heals by itself.
        """
        outbox, path, begun = Outbox(Path(self.outbox)), None, time.monotonic()
        if self.deployment:
            step = replace(step, tags={"deployment": self.deployment, **step.tags})
        try:
            path = outbox.keep(step)
        except (OSError, ValueError) as error:
            unkept = f"The record could not be kept in {outbox.folder} ({_reason(error)}) and is lost"
        else:
            unkept = f"The record is kept at {path}; `anven fill-mlflow` adds the run once MLflow answers"
        try:
            self._load()
            begun = time.monotonic()
            place = _within(self._patience(), lambda: self._send(outbox, path, step))
        except InvalidInput as error:
            return Tracked(None, None, self._public(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever ails MLflow, the step has done its work and goes on
            what = f"MLflow at {self.tracking_uri} has no run for {step.name} ({step.experiment}): {_reason(error)}"
            return Tracked(None, None, self._public(f"{what}. {unkept}."))
        if time.monotonic() - begun < HEALTHY_S:
            self._catch_up(outbox, deadline=begun + self.timeout_s)
        return Tracked(place.run_id, self.run_url(*place), None)

    def fill(self) -> Filled:
        """Deliver what the outbox holds, each record exactly once; stops early when MLflow does not answer.

        A record that can never be delivered is moved to `set-aside` in the outbox and named in `problems`.
        """
        outbox, delivered, problems = Outbox(Path(self.outbox)), 0, list[str]()
        waiting = outbox.waiting()
        if waiting and (down := self.problem()):
            return Filled(0, len(waiting), (down,))
        for path in waiting:
            try:
                delivered += _within(FILL_S, functools.partial(self._send_waiting, outbox, path))
            except (CorruptArtifact, InvalidInput) as error:
                problems.append(self._public(str(error)))
            except Exception as error:  # noqa: BLE001 - one record's trouble must not keep the others waiting
                problems.append(self._public(f"{path} was not delivered: {_reason(error)}"))
                if down := self.problem():
                    problems.append(down)
                    break
        return Filled(delivered, len(outbox.waiting()), tuple(problems))

    def problem(self) -> str | None:
        """Say why MLflow cannot be used now; None if it answers. Makes the SQLite database on first use."""
        try:
            self._load()
            _within(self._patience(), lambda: self._client().search_experiments(max_results=1))
        except Exception as error:  # noqa: BLE001 - whatever ails MLflow, the step has done its work and goes on
            return self._public(f"MLflow at {self.tracking_uri} does not answer: {_reason(error)}")
        return None

    def write_dataset(
        self, name: str, experiment: str, records: list[dict[str, Any]], *, tags: Mapping[str, str]
    ) -> str:
        """Make an evaluation dataset, or complete the one of that name; return its id.

        Raises:
            UnavailableService: MLflow did not take it.
        """
        return self._with_datasets(
            lambda client: _write_dataset(client, name, self._experiment(experiment), records, tags)
        )

    def read_dataset(self, name: str) -> list[dict[str, Any]]:
        """Return the records of the evaluation dataset of a name, in the order of their ids.

        Raises:
            InvalidInput: there is none, or several.
            UnavailableService: MLflow did not answer.
        """
        return self._with_datasets(lambda client: _read_dataset(client, name))

    def _experiment(self, name: str) -> str:
        return _experiment_id(self._client(), name, self._artifact_folder())

    def _with_datasets(self, use: Callable[[MlflowClient], Result]) -> Result:
        """Run with MLflow's global address set, which is where its datasets look for their store."""
        if down := self.problem():
            raise UnavailableService(down)
        import mlflow  # noqa: PLC0415 - loaded by now

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.tracking_uri)
        try:
            return use(self._client())
        except InvalidInput:
            raise
        except Exception as error:
            message = f"MLflow at {self.tracking_uri} did not take or give the dataset: {_reason(error)}"
            raise UnavailableService(self._public(message)) from error
        finally:
            mlflow.set_tracking_uri(before)

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """Return the run's page in MLflow's UI; None if no UI is known, as with a bare SQLite file."""
        base = self.ui_url or (self.tracking_uri if self.tracking_uri.startswith("http") else None)
        return base and self._public(f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}", mask="")

    def _load(self) -> None:
        """Import mlflow where no deadline runs: the import is our cost, not the server's."""
        settings = {
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for one JSON object
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(self.timeout_s)),
        }
        keep_private()
        for name, value in settings.items():
            os.environ.setdefault(name, value)  # mlflow reads these from nowhere else
        importlib.import_module("mlflow")
        if _sqlite_file(self.tracking_uri):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")

    def _patience(self) -> float:
        """Return the seconds that MLflow has: more while its SQLite database is still to be made."""
        database = _sqlite_file(self.tracking_uri)
        return self.timeout_s + (FIRST_USE_S if database and not database.exists() else 0.0)

    def _artifact_folder(self) -> str | None:
        """Return where documents of a new experiment go; MLflow's own choice for SQLite is the working directory."""
        database = _sqlite_file(self.tracking_uri)
        root = self.artifact_root or (str(database.parent / "artifacts") if database else None)
        return root if root is None or "://" in root else str(Path(root).absolute())

    def _client(self) -> MlflowClient:
        return _open_client(self.tracking_uri)

    def _send(self, outbox: Outbox, path: Path | None, step: StepRecord) -> _Place:
        """Deliver this process's own record, after whoever holds it; without a file if none could be kept."""
        if path is None:
            return self._deliver(step)
        with outbox.claim(path, wait=True):
            return self._deliver_kept(outbox, path, step)

    def _send_waiting(self, outbox: Outbox, path: Path) -> bool:
        """Deliver an earlier record, unless another process is at it or has done it."""
        with outbox.claim(path, wait=False) as mine:
            if mine:
                try:
                    step = outbox.read(path)
                except CorruptArtifact as error:
                    message = f"{error}; it was set aside as {outbox.set_aside(path)}"
                    raise CorruptArtifact(message) from error
                self._deliver_kept(outbox, path, step)
            return mine

    def _deliver_kept(self, outbox: Outbox, path: Path, step: StepRecord) -> _Place:
        """Deliver a record and take it out of the outbox; what MLflow can never take is set aside."""
        try:
            place = self._deliver(step)
        except InvalidInput as error:
            aside = outbox.set_aside(path) if path.exists() else path
            message = f"{error}; it was set aside as {aside}"
            raise InvalidInput(message) from error
        path.unlink(missing_ok=True)
        return place

    def _deliver(self, step: StepRecord) -> _Place:
        """Find or make the run, give it what it lacks, and end it last: a run that has ended is complete."""
        client = self._client()
        experiment_id = _experiment_id(client, step.experiment, self._artifact_folder())
        run = _run_of(client, experiment_id, step)
        if run.data.tags.get(RECORD_TAG) != step.digest:
            message = (
                f"run {run.info.run_id} already tracks {step.key!r} with other content, so this record of {step.name} "
                "was not added; a step that runs again needs its own key, see step_key(attempt=...)"
            )
            raise InvalidInput(message)
        if run.info.status != step.status:
            _complete(client, run, step)
        return _Place(experiment_id, run.info.run_id)

    def _catch_up(self, outbox: Outbox, *, deadline: float) -> None:
        """Deliver a few earlier records; the first trouble ends it, and `fill` will name it."""
        for path in outbox.waiting()[:CATCH_UP]:
            try:
                _within(deadline - time.monotonic(), functools.partial(self._send_waiting, outbox, path))
            except Exception:  # noqa: BLE001 - the step's own record is safe; these stay where they are
                return

    def _public(self, text: str, *, mask: str = "***@") -> str:
        """Take the user and password of the tracking address out of a text."""
        credentials, at, _ = urlsplit(self.tracking_uri).netloc.rpartition("@")
        return text.replace(credentials + at, mask) if at else text


@functools.cache
def _open_client(tracking_uri: str) -> MlflowClient:
    """Open MLflow, once per process."""
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and only steps that track need it

    if database := _sqlite_file(tracking_uri):
        _prepare(database)
    return MlflowClient(tracking_uri)


def _prepare(database: Path) -> None:
    """Make a new SQLite database, and refuse what is none: MLflow would try for 100 s to open it.

    A kill during MLflow's first migrations leaves a database that never opens again, and of several processes that
    migrate at once all but one fail. So one process at a time makes it aside and renames it into place.
    """
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and only steps that track need it

    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(f"{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                fresh = database.with_name(f"{database.name}.new")
                for leftover in database.parent.glob(f"{fresh.name}*"):  # a killed try, and its journal
                    leftover.unlink()
                MlflowClient(f"sqlite:///{fresh}")
                fresh.replace(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master")


def _experiment_id(client: MlflowClient, name: str, folder: str | None) -> str:
    """Find the experiment, or make it."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - mlflow is loaded by now

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=folder and f"{folder.rstrip('/')}/{name}")
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return found.experiment_id
        raise


def _write_dataset(
    client: MlflowClient, name: str, experiment_id: str, records: list[dict[str, Any]], tags: Mapping[str, str]
) -> str:
    found = _datasets_named(client, name)
    dataset = found[0] if found else client.create_dataset(name, experiment_id=experiment_id, tags=dict(tags))
    dataset.merge_records(records)
    return str(dataset.dataset_id)


def _read_dataset(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    found = _datasets_named(client, name)
    if len(found) != 1:
        message = f"MLflow has {len(found)} evaluation datasets named {name!r}; one is needed"
        raise InvalidInput(message)
    records = [record.to_dict() for record in found[0].records]
    return sorted(records, key=lambda record: str(record["inputs"].get("id")))


def _datasets_named(client: MlflowClient, name: str) -> list[EvaluationDataset]:
    quoted = name.replace("'", "\\'")
    return [each for each in client.search_datasets(filter_string=f"name = '{quoted}'") if each.name == name]


def _run_of(client: MlflowClient, experiment_id: str, step: StepRecord) -> Run:
    """Find the step's run by its key, or make it; of twins the complete one stays.

    Twins arise when a request to make a run is repeated, or overtaken by a search while a slow server still works on
    it. All who see them choose the same one.
    """
    by_key = f"tags.`{KEY_TAG}` = '{step.key}'"
    found = {run.info.run_id: run for run in client.search_runs([experiment_id], by_key)}
    if not found:
        tags = fit(step).tags | {KEY_TAG: step.key, RECORD_TAG: step.digest}
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


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """Wait so long for the work and no longer; it may still end later, which delivery by key allows.

    Raises:
        UnavailableService: the time is over.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="mlflow-tracking", daemon=True).start()
    finished = threading.Event()
    future.add_done_callback(lambda _: finished.set())
    if not finished.wait(max(seconds, 0.0)):
        message = f"no answer within {seconds:.3g} s"
        raise UnavailableService(message)
    return future.result()


def _sqlite_file(tracking_uri: str) -> Path | None:
    """Return the database file of a SQLite address; None for a server."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]) if tracking_uri.startswith(prefix) else None


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _reason(error: BaseException) -> str:
    """Return an error's first line; of a long one the beginning and the end, where nested errors name their cause."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= MAX_REASON_CHARS else f"{line[:100]} ... {line[-190:]}"
