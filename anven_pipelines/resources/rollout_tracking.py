"""Rollouts in MLflow, as a Dagster resource: brings the run of each attempt to where the audit log is.

The outbox is the audit log, which has every change before the gateway hears of it: nothing is lost while MLflow is
down, or whoever is killed, and no step and no look ever waits for it. A small file for each workload says up to which
event MLflow was told, and how it fares. A file that is lost costs a comparison, as MLflow's runs say it too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.notice import hold_stream
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.domain.rollout_tracking import attempts_of
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.resources.mlflow_tracking import Filled, MlflowTracking
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.resources.told import Told, claimed

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.events import Event

_FILE: Final = "mlflow.json"


class RolloutTracking(dg.ConfigurableResource[None]):
    """Tells MLflow of rollouts."""

    state: StateStore
    tracking: MlflowTracking
    folder: str = Field(description="Where it stands up to which event MLflow was told; whoever delivers shares it.")

    def is_due(self, workload: str, *, now: datetime) -> bool:
        """Return whether MLflow lacks something of a workload's rollout and may be tried.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        told = self._told(workload)
        return self._newest(workload) > told.seq and told.is_due(now)

    def deliver(self, workload: str, *, now: datetime) -> Told:
        """Bring MLflow to where the log is, an attempt at a time; return how that fares.

        Another process that is at it is left alone, which is told and not written down.

        Raises:
            UnavailableService: the state store or the folder does not answer, or takes no lock.
        """
        files = self._files(workload)
        told = self._told(workload)
        files.write(_FILE, told.to_bytes())  # the folder is there from now on, and can be written
        with claimed(Path(self.folder) / workload / ".lock") as is_mine:
            if not is_mine:
                return replace(told, problem="another process tells MLflow of it right now")
            told, events = self._told(workload), self._events(workload)
            try:
                for attempt in attempts_of(workload, events):
                    if attempt.seq > told.seq:
                        self.tracking.follow(attempt)
                        told = Told(attempt.seq)
                told = Told(max((event.seq for event in events), default=0))
            except Exception as error:  # noqa: BLE001 - MLflow does not take it, or the log holds what this release does not know
                told = told.failed(_reason(error), now=now)
            files.write(_FILE, told.to_bytes())
            return told

    def fill(self, *, now: datetime) -> Filled:
        """Deliver every rollout that MLflow lacks something of, whether it was tried lately or not."""
        delivered, remaining, problems = 0, 0, list[str]()
        prefix = stream_of("")
        try:
            begun = sorted({event.stream.removeprefix(prefix) for event in self.state.events_under(prefix)})
        except AnvenError as error:
            return Filled(0, 0, (str(error),))
        for workload in begun:
            try:
                if self._newest(workload) <= self._told(workload).seq:
                    continue
                problem = self.deliver(workload, now=now).problem
            except Exception as error:  # noqa: BLE001 - of one workload: the others are told all the same
                problem = _reason(error)
            delivered, remaining = delivered + (problem is None), remaining + (problem is not None)
            problems += [f"{workload}: {problem}"] if problem else []
        return Filled(delivered, remaining, tuple(problems))

    def _newest(self, workload: str) -> int:
        newest = [self.state.latest(stream) for stream in (stream_of(workload), hold_stream(workload))]
        return max((event.seq for event in newest if event), default=0)

    def _events(self, workload: str) -> list[Event]:
        """Return what happened to a rollout and what held it, in the order of the log."""
        events = [*self.state.events(stream_of(workload)), *self.state.events(hold_stream(workload))]
        return sorted(events, key=lambda event: event.seq)

    def _told(self, workload: str) -> Told:
        return Told.from_bytes(self._files(workload).read(_FILE)) or Told(0)

    def _files(self, workload: str) -> DurableFolder:
        return DurableFolder(str(Path(self.folder) / workload), {})


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AnvenError) else f"{type(error).__name__}: {error}"
