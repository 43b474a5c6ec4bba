"""What production shows of a workload, as it is judged: from the gateway's event log, or from Prometheus."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import dagster as dg
import polars as pl
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError, UnavailableService
from anven_pipelines.domain.rollout_capacity import peak_rate_of
from anven_pipelines.domain.rollout_evidence import Evidence
from anven_pipelines.domain.rollout_losses import is_whole, losses_of
from anven_pipelines.domain.rollout_measure import assignment_of, compare, spans_of, windows_of
from anven_pipelines.domain.rollout_mirrored import pairs_of
from anven_pipelines.domain.rollout_top_up import counted_in, topped_up
from anven_pipelines.domain.rollout_units import units_of
from anven_pipelines.resources.prometheus_metrics import prometheus_evidence

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus


_READING: Final = threading.Lock()
"""A reading of the event log takes all of it into memory: one at a time, however many threads look at workloads ..."""
READING_S: Final = 30.0
"""... but a reading that hangs is not waited for longer than this."""

_UNREADABLE: Final = (AnvenError, OSError, pl.exceptions.PolarsError, LookupError, TypeError, ValueError)


class _Seen(NamedTuple):
    """A workload's events of an attempt, the numbers of all events, and what is wrong although both are known."""

    events: pl.DataFrame
    numbers: pl.DataFrame
    trouble: str | None


class ProductionMetrics(dg.ConfigurableResource[None]):
    """Reads the event log that the gateway's workers write, each line once, or what Prometheus scraped of them."""

    events: str = Field(description="Folder of the gateway's event log.")
    store: str = Field(description="Folder of the events that were read.")

    def evidence(self, plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> Evidence:
        """Return what is known of a workload at this moment.

        A log that cannot be read is evidence of nothing: the reason stands in `problem`. A window of which much was
        lost proves no harm. What was read and cannot be kept, or not be marked as read, counts all the same, and no
        stage is left by it. A breaker that tripped is told whatever else fails.
        """
        if plan.rollout.metrics.source == "prometheus":
            return prometheus_evidence(plan, status, now=now)
        has_turn = _READING.acquire(timeout=READING_S)
        try:
            return self._logged(plan, status, now=now)
        finally:
            if has_turn:
                _READING.release()

    def events_of(self, workload: str, *, attempt: int) -> pl.DataFrame:
        """Return the gateway's events of an attempt, GATEWAY_EVENTS, each once, with what is new in the log.

        Raises:
            UnavailableService: the log cannot be read.
        """
        has_turn = _READING.acquire(timeout=READING_S)
        try:
            return self._seen(workload, attempt=attempt).events
        except _UNREADABLE as error:
            message = f"the event log {self.events} cannot be read: {error}"
            raise UnavailableService(message) from error
        finally:
            if has_turn:
                _READING.release()

    def _logged(self, plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> Evidence:
        since = status.entered_at
        try:
            events, numbers, trouble = self._seen(plan.workload, attempt=status.attempt)
        except _UNREADABLE as error:
            return Evidence(
                generation=status.generation,
                as_of=None,
                problem=f"the event log cannot be read: {error}",
                breaker=self._tripped_in_log(plan.workload, status.generation),
            )
        present = events.filter(pl.col("generation") == status.generation)
        losses = losses_of(numbers, since=now if since is None else since, now=now)
        told = "; ".join(each for each in (_lost(losses), trouble) if each)
        known = Evidence(generation=status.generation, as_of=None, breaker=_tripped(present), lost=told or None)
        if present.is_empty() or status.stage is None or since is None:
            return known
        as_of: datetime | None = present["ts"].max()  # type: ignore[assignment]  # a maximum of times
        prompts = _prompts(present, mirrored=bool(plan.rollout.shadow_top_up))
        newest = None if prompts.is_empty() else prompts.sort("ts")["prompt_version"][-1]
        known = replace(known, prompt=newest, prompts=dict(prompts["prompt_version"].value_counts().iter_rows()))
        try:
            units = units_of(events, plan, generation=status.generation, now=now)
            alone = plan.stages[status.stage].share == 1
            before = _before(events, plan, status, now=now) if alone else None
            windows = [
                window._replace(is_whole=is_whole(losses, present, since=span.since))
                for window, span in zip(
                    windows_of(units, plan, entered_at=since, now=now, alone=alone),
                    spans_of(plan, entered_at=since, now=now, alone=alone),
                    strict=True,
                )
            ]
            compared = compare(plan, status.stage, windows, before=before)
            if plan.rollout.shadow_top_up:
                pairs = pairs_of(events, plan, generation=status.generation, now=now)
                compared = topped_up(plan, status.stage, compared, pairs)
            return replace(
                known,
                as_of=as_of,
                peak_rate=_peak_rate(present),
                comparisons=compared,
                assignment=counted_in(assignment_of(plan, status.stage, units), compared),
            )
        except (AnvenError, pl.exceptions.PolarsError, ArithmeticError, LookupError, ValueError) as error:
            return replace(known, problem=f"the events cannot be evaluated: {type(error).__name__}: {error}")

    def _seen(self, workload: str, *, attempt: int) -> _Seen:
        """Take in what is new and read what is there; where it cannot be kept, read it in the log itself."""
        from anven_pipelines.ingest.event_store import EventStore  # noqa: PLC0415 - layers

        store, log = EventStore(Path(self.store)), Path(self.events)
        try:
            with store.alone():
                trouble = store.ingest(log).unmarked if log.is_dir() else None
                found = store.contents()
                return _Seen(found.of(workload, attempt=attempt), found.numbers(), trouble)
        except (UnavailableService, OSError) as error:
            trouble = f"the gateway's events are read and cannot be kept: {error}"
        try:
            found = store.contents(log)
            return _Seen(found.of(workload, attempt=attempt), found.numbers(), trouble)
        except FileNotFoundError:  # another process merged that part meanwhile: the manifest names the new one by now
            found = store.contents(log)
            return _Seen(found.of(workload, attempt=attempt), found.numbers(), trouble)

    def _tripped_in_log(self, workload: str, generation: int) -> str | None:
        """Return what made the breaker trip, by what the log still holds; None where that cannot be read either."""
        from anven_pipelines.ingest.gateway_events import breaker_events  # noqa: PLC0415 - layers

        try:
            events = breaker_events(Path(self.events))
        except _UNREADABLE:
            return None
        return _tripped(events.filter(pl.col("workload") == workload, pl.col("generation") == generation))


def _lost(losses: pl.DataFrame) -> str | None:
    if losses.is_empty():
        return None
    return f"{losses['lost'].sum():,} events of the gateway are lost: its disk was full, or its log was cut"


def _peak_rate(present: pl.DataFrame) -> float | None:
    """Return the requests per second in the busiest minute; what is mirrored or told later is no request."""
    times = present.filter(pl.col("kind") == "request")["ts"].dt.epoch("ms").cast(pl.Float64) / 1000
    return peak_rate_of(times.to_numpy())


def _prompts(present: pl.DataFrame, *, mirrored: bool) -> pl.DataFrame:
    """Return `ts` and `prompt_version` of the target's answers, those to mirrored requests where they count, too."""
    kinds = ["request", "shadow"] if mirrored else ["request"]
    answered = pl.col("kind").is_in(kinds) & (pl.col("served") == "target") & pl.col("prompt_version").is_not_null()
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
