"""What production shows of a workload, as it is judged: from the gateway's event log, or from Prometheus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg
import polars as pl
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.rollout_capacity import peak_rate_of
from anven_pipelines.domain.rollout_evidence import Evidence
from anven_pipelines.domain.rollout_measure import assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_units import units_of
from anven_pipelines.resources.prometheus_metrics import prometheus_evidence

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus


_MOST_LOST: Final = 0.01
"""Lost events, as a share of those that came of the stage, above which what came is no evidence: as for metrics."""


class ProductionMetrics(dg.ConfigurableResource[None]):
    """Reads the event log that the gateway's workers write, each line once, or what Prometheus scraped of them."""

    events: str = Field(description="Folder of the gateway's event log.")
    store: str = Field(description="Folder of the events that were read.")

    def evidence(self, plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> Evidence:
        """Return what is known of a workload at this moment.

        A log that cannot be read, in whole or in much of it, is evidence of nothing: the reason stands in `problem`. A
        breaker that tripped is told whatever else fails.
        """
        if plan.rollout.metrics.source == "prometheus":
            return prometheus_evidence(plan, status, now=now)
        since = status.entered_at
        try:
            events, lost = self._workload(plan.workload, attempt=status.attempt, since=since)
        except (AnvenError, OSError, pl.exceptions.PolarsError, LookupError, TypeError, ValueError) as error:
            return Evidence(generation=status.generation, as_of=None, problem=f"the event log cannot be read: {error}")
        present = events.filter(pl.col("generation") == status.generation)
        known = Evidence(generation=status.generation, as_of=None, breaker=_tripped(present))
        if lost:
            told = f"{lost:,} events of the gateway are lost: its disk was full, or its log was cut"
            is_much = lost > _MOST_LOST * present.height
            known = replace(known, problem=told) if is_much else replace(known, lost=told)
        if present.is_empty() or status.stage is None or since is None:
            return known
        as_of: datetime | None = present["ts"].max()  # type: ignore[assignment]  # a maximum of times
        prompts = _prompts(present)
        newest = None if prompts.is_empty() else prompts.sort("ts")["prompt_version"][-1]
        known = replace(known, prompt=newest, prompts=dict(prompts["prompt_version"].value_counts().iter_rows()))
        try:
            units = units_of(events, plan, generation=status.generation, now=now)
            before = _before(events, plan, status, now=now) if plan.stages[status.stage].share == 1 else None
            windows = windows_of(units, plan, entered_at=since, now=now)
            return replace(
                known,
                as_of=as_of,
                peak_rate=_peak_rate(present),
                comparisons=compare(plan, status.stage, windows, before=before),
                assignment=assignment_of(plan, status.stage, units),
            )
        except (AnvenError, pl.exceptions.PolarsError, ArithmeticError, LookupError, ValueError) as error:
            return replace(known, problem=f"the events cannot be evaluated: {type(error).__name__}: {error}")

    def _workload(self, workload: str, *, attempt: int, since: datetime | None) -> tuple[pl.DataFrame, int]:
        """Return a workload's events of an attempt, and how many events of any workload were lost since then."""
        from anven_pipelines.ingest.gateway_events import EventStore  # noqa: PLC0415 - layers

        store = EventStore(Path(self.store))
        with store.alone():
            if Path(self.events).is_dir():
                store.ingest(Path(self.events))
            found = store.contents()
            return found.of(workload, attempt=attempt), 0 if since is None else _lost(found.numbers(), since=since)


def _lost(numbers: pl.DataFrame, *, since: datetime) -> int:
    """Count the events that workers meant to write, numbered from 1 on, and did not, up to one that came since then."""
    earlier = pl.col("seq").shift(1).over("worker").fill_null(0)
    gaps = numbers.sort("worker", "seq").select(
        (pl.col("seq") - earlier - 1).clip(0).alias("lost"),
        # A repeat has no time of its own: it is as old as the next event, or the newest there is.
        pl.col("ts").backward_fill().over("worker").fill_null(since),
    )
    return int(gaps.filter(pl.col("ts") >= since)["lost"].sum())


def _peak_rate(present: pl.DataFrame) -> float | None:
    """Return the requests per second in the busiest minute; what is mirrored or told later is no request."""
    times = present.filter(pl.col("kind") == "request")["ts"].dt.epoch("ms").cast(pl.Float64) / 1000
    return peak_rate_of(times.to_numpy())


def _prompts(present: pl.DataFrame) -> pl.DataFrame:
    """Return `ts` and `prompt_version` of the target's answers."""
    answered = (pl.col("kind") == "request") & (pl.col("served") == "target") & pl.col("prompt_version").is_not_null()
    return present.filter(answered).select("ts", "prompt_version")


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
