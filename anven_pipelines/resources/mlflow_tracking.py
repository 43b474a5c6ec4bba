"""MLflow: one run per asset step, kept in an outbox until MLflow has it whole.

A record is written to the outbox before MLflow hears of it and removed after its run is complete, so nothing is lost
when MLflow is down or the process is killed. Delivering twice gives one run: it is looked up by the tag `anven.key`
before it is made, a half-made run is completed, and a twin made by a repeated request is deleted.

Time: once mlflow is loaded and its database made (`mlflow_connection.py`), `record` returns within `timeout_s`,
whatever MLflow does: a closed port costs 0.01 s, a server that accepts and never answers costs `timeout_s`. What
retries is the outbox.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, UnavailableService
from anven_pipelines.resources.mlflow_connection import (
    Result,
    load_mlflow,
    open_client,
    patience_s,
    sqlite_file,
    within,
)
from anven_pipelines.resources.mlflow_dataset import global_address, read_dataset, write_dataset
from anven_pipelines.resources.mlflow_run import Place, deliver, experiment_id, follow
from anven_pipelines.resources.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow import MlflowClient

    from anven_pipelines.domain.rollout_tracking import Attempt
    from anven_pipelines.domain.tracking import StepRecord

FILL_S: Final = 60.0  # for one record, when nobody waits for a step to end
CATCH_UP: Final = 3  # earlier records that a healthy `record` takes along
HEALTHY_S: Final = 1.0
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
            load_mlflow(self.tracking_uri, timeout_s=self.timeout_s)
            begun = time.monotonic()
            place = within(self._patience_s(), lambda: self._send(outbox, path, step))
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
                delivered += within(FILL_S, functools.partial(self._send_waiting, outbox, path))
            except (CorruptArtifact, InvalidInput) as error:
                problems.append(self._public(str(error)))
            except Exception as error:  # noqa: BLE001 - one record's trouble must not keep the others waiting
                problems.append(self._public(f"{path} was not delivered: {_reason(error)}"))
                if down := self.problem():
                    problems.append(down)
                    break
        return Filled(delivered, len(outbox.waiting()), tuple(problems))

    def follow(self, attempt: Attempt) -> Place:
        """Bring the run of a rollout's attempt to where the audit log is; the log keeps what is not delivered.

        Raises:
            UnavailableService: MLflow did not take it, or not in time.
        """
        tags = {**({"deployment": self.deployment} if self.deployment else {}), **attempt.record.tags}
        attempt = replace(attempt, record=replace(attempt.record, tags=tags))
        try:
            load_mlflow(self.tracking_uri, timeout_s=self.timeout_s)
            waiting = len(Outbox(Path(self.outbox)).waiting())
            return within(
                FILL_S, lambda: follow(self._client(), attempt, folder=self._artifact_folder(), waiting=waiting)
            )
        except Exception as error:
            message = f"MLflow at {self.tracking_uri} did not take {attempt.record.name}: {_reason(error)}"
            raise UnavailableService(self._public(message)) from error

    def problem(self) -> str | None:
        """Say why MLflow cannot be used now; None if it answers. Makes the SQLite database on first use."""
        try:
            load_mlflow(self.tracking_uri, timeout_s=self.timeout_s)
            within(
                self._patience_s(),
                lambda: self._client().search_experiments(max_results=1),
            )
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
            lambda client: write_dataset(
                client, name, experiment_id(client, experiment, self._artifact_folder()), records, tags
            )
        )

    def read_dataset(self, name: str) -> list[dict[str, Any]]:
        """Return the records of the evaluation dataset of a name, in the order of their ids.

        Raises:
            InvalidInput: there is none, or several.
            UnavailableService: MLflow did not answer.
        """
        return self._with_datasets(lambda client: read_dataset(client, name))

    def _with_datasets(self, use: Callable[[MlflowClient], Result]) -> Result:
        if down := self.problem():
            raise UnavailableService(down)
        with global_address(self.tracking_uri):
            try:
                return use(self._client())
            except InvalidInput:
                raise
            except Exception as error:
                message = f"MLflow at {self.tracking_uri} did not take or give the dataset: {_reason(error)}"
                raise UnavailableService(self._public(message)) from error

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """Return the run's page in MLflow's UI; None if no UI is known, as with a bare SQLite file."""
        base = self.ui_url or (self.tracking_uri if self.tracking_uri.startswith("http") else None)
        return base and self._public(f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}", mask="")

    def _patience_s(self) -> float:
        return patience_s(self.tracking_uri, timeout_s=self.timeout_s)

    def _artifact_folder(self) -> str | None:
        """Return where documents of a new experiment go; MLflow's own choice for SQLite is the working directory."""
        database = sqlite_file(self.tracking_uri)
        root = self.artifact_root or (str(database.parent / "artifacts") if database else None)
        return root if root is None or "://" in root else str(Path(root).absolute())

    def _client(self) -> MlflowClient:
        return open_client(self.tracking_uri)

    def _send(self, outbox: Outbox, path: Path | None, step: StepRecord) -> Place:
        """Deliver this process's own record, after whoever holds it; without a file if none could be kept."""
        if path is None:
            return deliver(self._client(), step, folder=self._artifact_folder())
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

    def _deliver_kept(self, outbox: Outbox, path: Path, step: StepRecord) -> Place:
        """Deliver a record and take it out of the outbox; what MLflow can never take is set aside."""
        try:
            place = deliver(self._client(), step, folder=self._artifact_folder())
        except InvalidInput as error:
            aside = outbox.set_aside(path) if path.exists() else path
            message = f"{error}; it was set aside as {aside}"
            raise InvalidInput(message) from error
        path.unlink(missing_ok=True)
        return place

    def _catch_up(self, outbox: Outbox, *, deadline: float) -> None:
        """Deliver a few earlier records; the first trouble ends it, and `fill` will name it."""
        for path in outbox.waiting()[:CATCH_UP]:
            try:
                within(deadline - time.monotonic(), functools.partial(self._send_waiting, outbox, path))
            except Exception:  # noqa: BLE001 - the step's own record is safe; these stay where they are
                return

    def _public(self, text: str, *, mask: str = "***@") -> str:
        """Take the user and password of the tracking address out of a text."""
        credentials, at, _ = urlsplit(self.tracking_uri).netloc.rpartition("@")
        return text.replace(credentials + at, mask) if at else text


def _reason(error: BaseException) -> str:
    """Return an error's first line; of a long one the beginning and the end, where nested errors name their cause."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= MAX_REASON_CHARS else f"{line[:100]} ... {line[-190:]}"
