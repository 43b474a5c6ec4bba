"""What production shows of a workload, as the controller judges it: from the gateway's event log."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.rollout_evidence import Evidence
from anven_pipelines.domain.rollout_measure import assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_units import units_of

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus


class ProductionMetrics(dg.ConfigurableResource[None]):
    """Reads the event log that the gateway's workers write, each line once."""

    events: str = Field(description="Folder of the gateway's event log.")
    store: str = Field(description="Folder of the events that were read.")

    def evidence(self, plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> Evidence:
        """Return what is known of a workload at this moment.

        A log that cannot be read, in whole or in part, is evidence of nothing: the reason stands in `problem`.
        """
        try:
            events, lost = self._workload(plan.workload)
        except (AnvenError, OSError, pl.exceptions.PolarsError) as error:
            return Evidence(generation=status.generation, as_of=None, problem=f"the event log cannot be read: {error}")
        present = events.filter(pl.col("generation") == status.generation)
        tripped = _tripped(present)
        as_of: datetime | None = present["ts"].max()  # type: ignore[assignment]  # a maximum of times
        if present.is_empty() or status.stage is None or status.entered_at is None:
            return Evidence(generation=status.generation, as_of=None, problem=lost, breaker=tripped)
        units = units_of(events, plan, generation=status.generation, now=now)
        before = _before(events, plan, status, now=now) if plan.stages[status.stage].share == 1 else None
        windows = windows_of(units, plan, entered_at=status.entered_at, now=now)
        return Evidence(
            generation=status.generation,
            as_of=as_of,
            comparisons=compare(plan, status.stage, windows, before=before),
            assignment=assignment_of(plan, status.stage, units),
            problem=lost,
            breaker=tripped,
        )

    def _workload(self, workload: str) -> tuple[pl.DataFrame, str | None]:
        """Return a workload's events with their feedback, and what of the log is lost."""
        from anven_pipelines.ingest.gateway_events import EventStore, attributed  # noqa: PLC0415 - layers

        store = Path(self.store)
        store.mkdir(parents=True, exist_ok=True)
        kept = EventStore(store)
        if Path(self.events).is_dir():
            with (store / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                kept.ingest(Path(self.events))
        events = attributed(kept.events())
        gaps = _gaps(events)
        return events.filter(pl.col("workload") == workload), gaps


def _gaps(events: pl.DataFrame) -> str | None:
    """Say how many events the gateway's workers dropped; a worker numbers all that it means to write."""
    spans = events.group_by("worker").agg(
        (pl.col("seq").max() - pl.col("seq").min() + 1 - pl.col("seq").n_unique()).alias("lost")
    )
    lost = int(spans["lost"].sum())
    return f"{lost:,} events of the gateway are lost: its disk was full, or its log was cut" if lost else None


def _tripped(present: pl.DataFrame) -> str | None:
    """Return what made the breaker trip in this generation; None where it did not."""
    trips = present.filter((pl.col("kind") == "breaker") & (pl.col("outcome") == "open"))
    if trips.is_empty():
        return None
    first = trips.sort("ts").row(0, named=True)
    return f"{first['error_class'] or 'a burst'} at {first['ts']:%H:%M:%S} UTC"


def _before(events: pl.DataFrame, plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> pl.DataFrame | None:
    """Return the units of the last generation of this attempt in which legacy had traffic."""
    shared = events.filter(
        (pl.col("attempt") == status.attempt) & (pl.col("generation") < status.generation) & (pl.col("share") < 1)
    )
    last = shared["generation"].max()
    return None if last is None else units_of(events, plan, generation=int(last), now=now)  # type: ignore[arg-type] # a maximum of integers
