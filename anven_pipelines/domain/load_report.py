"""The report of a load benchmark: both arms rate by rate, the saturation points, and what follows for capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from anven_pipelines.domain.capacity import Capacity, Demand, capacity_of
from anven_pipelines.domain.evaluation import Finding
from anven_pipelines.domain.load import (
    LEVEL,
    LOAD_REQUESTS,
    RateFigures,
    Saturation,
    Share,
    figures_of,
    judged,
    saturation_of,
)
from anven_pipelines.domain.load_reach import why_never
from anven_pipelines.stats.proportions import unpaired_difference_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.load_plan import LoadArm
    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_load import Load


class ArmFound(NamedTuple):
    """What came of one arm.

    Attributes:
        name: `target` or `legacy`.
        rows: LOAD_REQUESTS without judgement, a frame for each rate.
        silent: Why the server could not be put under load; None where it could.
    """

    name: str
    rows: Sequence[pl.DataFrame]
    silent: str | None


class Compared(Finding):
    """Both arms at one rate: the difference in the share of requests within the limits, target minus legacy."""

    rate: float
    difference: Share


class LoadReport(Finding):
    """What the benchmark found; `figures` holds every rate that was run."""

    workload: str
    message: str
    figures: list[RateFigures]
    target: Saturation
    legacy: Saturation | None
    compared: list[Compared]
    capacity: Capacity | None


def why_not(migration: Migration, arms: Sequence[LoadArm]) -> str | None:
    """Say why nothing can be sent; None where something can."""
    if (never := why_never(migration)) is not None:
        return f"not measured: {never}"
    if not arms[0].requests:
        return (
            "not measured: every golden item is sealed or stands for no traffic, and only open traffic items are sent; "
            "a smaller golden.holdout is needed"
        )
    return None


def rung(each: RateFigures) -> str:
    """Say in a line how a server did at one rate."""
    times = ", ".join(
        f"{name} {_ms(found.p50)} / {_ms(found.p95)} ms"
        for name, found in (("TTFT p50 / p95", each.ttft_ms), ("per token", each.inter_token_ms))
    )
    goodput = "unknown" if each.goodput is None else f"{each.goodput:.3g}/s"
    return (
        f"{each.arm} at {each.rate:g}/s is {each.judgement}: {each.requests:,} requests, goodput {goodput}, {times}, "
        f"{each.error_share:.1%} errors; {each.reason}"
    )


def unmeasured(migration: Migration, reason: str) -> LoadReport:
    """Return the report of a benchmark that did not take place."""
    nothing = Saturation(status="unmeasured", sustained_rate=None, beyond_rate=None, goodput=None, reason=reason)
    return LoadReport(
        workload=migration.workload, message=reason, figures=[], target=nothing, legacy=None, compared=[], capacity=None
    )


def judged_rows(found: Sequence[ArmFound], load: Load) -> pl.DataFrame:
    """Return LOAD_REQUESTS of all arms and rates."""
    return pl.concat([LOAD_REQUESTS.empty(), *(judged(rows, load.slo) for arm in found for rows in arm.rows)])


def report_of(migration: Migration, load: Load, found: Sequence[ArmFound], demand: Demand) -> LoadReport:
    """Draw up the report.

    Args:
        migration: Names the workload.
        load: Its section `load`.
        found: The target's arm, then the legacy model's where it was asked.
        demand: How often the workload calls.
    """
    seconds = load.duration.total_seconds()
    figures = {
        arm.name: [figures_of(judged(rows, load.slo), load.slo, seconds=seconds) for rows in arm.rows] for arm in found
    }
    points = {arm.name: _saturation(arm, figures[arm.name], load) for arm in found}
    legacy = points.get("legacy")
    words = [f"{name}: {point.reason}" for name, point in points.items()]
    return LoadReport(
        workload=migration.workload,
        message="; ".join(words),
        figures=[each for arm in found for each in figures[arm.name]],
        target=points["target"],
        legacy=legacy,
        compared=_compared(figures["target"], figures.get("legacy", [])),
        capacity=capacity_of(points["target"], demand, load),
    )


def _saturation(arm: ArmFound, figures: Sequence[RateFigures], load: Load) -> Saturation:
    point = saturation_of(figures, load.slo)
    return point if arm.silent is None else point.model_copy(update={"reason": f"not measured: {arm.silent}"})


def _compared(target: Sequence[RateFigures], legacy: Sequence[RateFigures]) -> list[Compared]:
    """Compare the arms at the rates at which both told something, as if their requests were independent."""
    pairs = [
        (each, other)
        for each in target
        for other in legacy
        if each.rate == other.rate and "unmeasured" not in (each.judgement, other.judgement)
    ]
    return [Compared(rate=each.rate, difference=_difference(each, other)) for each, other in pairs]


def _difference(target: RateFigures, legacy: RateFigures) -> Share:
    bounds = unpaired_difference_interval(target.kept, target.requests, legacy.kept, legacy.requests, level=LEVEL)
    return Share(estimate=bounds.estimate, lower=bounds.lower, upper=bounds.upper)


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}"
