"""Turns what was seen of single users or conversations into the evidence that the controller judges.

One unit is one observation: an assignment that sticks makes all its requests share one draw of an arm, and only draws
are independent. In each stage every unit counts once (`rollout_units.py`). The evidence is computed anew from
all units of the stage at every look, so that nothing can be lost or counted twice between looks.

Two windows look for harm: the whole stage, which finds a small harm that is there from the beginning, and the recent
hours, which find one that begins late and that the good hours before would hide. They share the error rate of the
stage; the k-th recent window has 1 / (k (k + 1)) of its half, which adds up to that half however long the stage is.
Where legacy has no traffic any more the present day is a third one, and each has a third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.rollout_evidence import Assignment
from anven_pipelines.domain.rollout_gaps import LEFT, legacy_lacked_more, uneven
from anven_pipelines.domain.rollout_hours import DAY, of_same_hours
from anven_pipelines.domain.rollout_judgement import SPARED, judged, unknown_of
from anven_pipelines.domain.rollout_reading import READINGS
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table
from anven_pipelines.stats.asymptotic_sequence import AsymptoticMean
from anven_pipelines.stats.confidence_sequence import difference_of
from anven_pipelines.stats.quantile_sequence import QuantileSequence
from anven_pipelines.stats.randomised_difference import AsymptoticDifference, RandomisedDifference
from anven_pipelines.stats.sample_ratio import SampleRatio
from anven_pipelines.stats.sequential import BoundedMean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from anven_pipelines.domain.rollout_evidence import Comparison
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.spec_rollout import Metric
    from anven_pipelines.stats.interval import Interval

UNITS: Final = Table(
    "rollout_units",
    (
        Column("unit", pl.String, "Keyed hash of the user or conversation."),
        Column("seen_at", UTC_TIMESTAMP, "When its first request of the stage ended."),
        Column("treated", pl.Boolean, "Whether it was assigned to the target."),
        Column("errors", pl.Float64, "Share of its requests that failed, in [0, 1]."),
        Column(
            "contract", pl.Float64, "Share of its whole answers without the declared form; NULL where none is known."
        ),
        Column("safety", pl.Float64, "Share of its judged answers that were flagged as unsafe."),
        Column("quality", pl.Float64, "Mean score of its judged answers, in [0, 1]."),
        Column(
            "ttft_ms", pl.Float64, "Time to first token of its first request that is timed; NULL where that failed."
        ),
        Column("latency_ms", pl.Float64, "Latency of that request; NULL where it failed."),
        Column("cost_usd", pl.Float64, "Cost of that request; NULL where it failed or no price is known."),
        Column("streamed", pl.Boolean, "Whether a time to first token was to be had."),
        Column("timed", pl.Boolean, "Whether it made a request that no cache answered and no client cut off."),
        Column("left", pl.Boolean, "Whether a client hung up before it had an answer whole."),
        Column("due", pl.Boolean, "Whether a score was to come, and has had its time."),
        Column("fell_back", pl.Boolean, "Whether legacy answered for the target."),
        Column("moved", pl.Boolean, "Whether it was assigned to both arms under one share."),
    ),
)
"""One row a unit, in the order of the first requests; NULL is what was not measured."""

P95: Final = 0.95
SMALLEST_RATE: Final = 1e-12


class Window(NamedTuple):
    """Units of one stretch of time, and the one-sided error rate of a claim of harm in it.

    `is_whole` is False where so much of it is missing that what is left may be the worse part: it is asked for no harm.
    """

    units: pl.DataFrame
    harm_level: float
    is_whole: bool = True


class Span(NamedTuple):
    """When a window begins, and the one-sided error rate of a claim of harm in it."""

    since: datetime
    harm_level: float


class _Side(NamedTuple):
    """What two arms are compared on: concurrent units dealt at a share, or the target's beside legacy's of before.

    Units have `bad`, NULL where it is not known, and `applies`, False where it was not to be had.
    """

    metric: Metric
    units: pl.DataFrame
    share: float | None
    before: pl.DataFrame | None

    @property
    def target(self) -> pl.DataFrame:
        return self.units.filter("treated")

    @property
    def legacy(self) -> pl.DataFrame:
        return self.units.filter(~pl.col("treated")) if self.before is None else self.before

    def unmeasured(self, least: float) -> str | None:
        for name, arm in (("target", self.target), ("legacy", self.legacy)):
            known, due = arm.height - arm["bad"].null_count(), int(arm["applies"].sum())
            if known < least * due:
                return f"{known:,} of {due:,} units of {name} were measured, {least:.0%} are needed"
        return None

    def difference(self, *, alpha: float) -> Interval:
        return _difference(_known(self), alpha=alpha)

    def legacy_mean(self, *, alpha: float) -> Interval:
        return _mean(self.metric, _known(self).legacy, alpha=alpha)

    def spared(self) -> _Side:
        """Take what the target lacks for as good as can be, and what legacy lacks for as bad."""
        instead = pl.col("bad").fill_null(pl.when("treated").then(0.0).otherwise(1.0))
        before = None if self.before is None else self.before.with_columns(instead)
        return self._replace(units=self.units.with_columns(instead), before=before)


def windows_of(
    units: pl.DataFrame, plan: RolloutPlan, *, entered_at: datetime, now: datetime, alone: bool = False
) -> list[Window]:
    """Return the windows in which harm is looked for: the whole stage, and the present recent hours.

    Args:
        units: UNITS of the stage.
        plan: Has the error rate and the length of a recent window.
        entered_at: When the stage began.
        now: When it is looked.
        alone: Whether legacy has no traffic in this stage: `spans_of` has a third window then.
    """
    whole, *recent = spans_of(plan, entered_at=entered_at, now=now, alone=alone)
    return [
        Window(units, whole.harm_level),
        *(Window(units.filter(pl.col("seen_at") >= span.since), span.harm_level) for span in recent),
    ]


def spans_of(plan: RolloutPlan, *, entered_at: datetime, now: datetime, alone: bool = False) -> list[Span]:
    """Return when the windows begin in which harm is looked for: with the stage, and with the present recent hours.

    Where legacy has no traffic, in a stage of days, there is a third one of the present day. There a window is held
    against legacy's same hours, and of six hours too little is known to find a moderate harm, which a stage of a week
    would hide for as long.
    """
    days = [DAY] if alone and plan.rollout.recent < DAY <= plan.stages[-1].soak else []
    part = plan.harm_level / (2 + len(days))
    spans = [Span(entered_at, part)]
    for length in (plan.rollout.recent, *days):
        k = max(0, int((now - entered_at) / length)) + 1
        if part / (k * (k + 1)) >= SMALLEST_RATE:  # not so after years: beyond, a level of coverage would round to 1
            spans.append(Span(entered_at + (k - 1) * length, part / (k * (k + 1))))
    return spans


def compare(
    plan: RolloutPlan, stage: int, windows: Sequence[Window], *, before: pl.DataFrame | None = None
) -> tuple[Comparison, ...]:
    """Compare both arms in every metric of the plan.

    Args:
        plan: What is judged, and how strictly.
        stage: Place in the plan's stages.
        windows: Where harm is looked for; the first one holds all units of the stage, and carries the proof.
        before: UNITS of the last stage in which legacy had traffic; needed where it has none now. A window is held
            against those of its hours of the day (`rollout_hours.py`).
    """
    share = plan.stages[stage].share
    legacy = None
    if share == 1:
        if before is None or before.is_empty():
            why = "legacy has no traffic in this stage and had none before that could be compared with"
            return tuple(unknown_of(metric, why) for metric in plan.metrics)
        legacy = before.filter(~pl.col("treated"))
    return tuple(
        _compared(plan, metric, windows, share=None if share == 1 else share, legacy=legacy) for metric in plan.metrics
    )


def assignment_of(plan: RolloutPlan, stage: int, units: pl.DataFrame) -> Assignment:
    """Count how traffic was dealt to the arms.

    Args:
        plan: Has the share that was planned.
        stage: Place in the plan's stages.
        units: UNITS of the stage.
    """
    share, target = plan.stages[stage].share, int(units["treated"].sum())
    legacy = units.height - target
    p_value = SampleRatio(shares=(share, 1 - share)).update([target, legacy]).p_value if share < 1 else None
    return Assignment(
        target=target,
        legacy=legacy,
        p_value=p_value,
        moved=int(units["moved"].sum()),
        fell_back=int((units["fell_back"] & units["treated"]).sum()),
    )


def _compared(
    plan: RolloutPlan, metric: Metric, windows: Sequence[Window], *, share: float | None, legacy: pl.DataFrame | None
) -> Comparison:
    before = None if legacy is None else _readable(legacy, metric)
    sides = [
        (_side(metric, window.units, share=share, before=before), window.harm_level if window.is_whole else None)
        for window in windows
    ]
    units = windows[0].units
    doubt = uneven(units, metric, share=share, before=legacy)
    lacks_more = share is None and legacy is not None and legacy_lacked_more(units, metric, before=legacy)
    return judged(plan, sides, doubt=doubt, lacks_more=lacks_more)


def _side(metric: Metric, units: pl.DataFrame, *, share: float | None, before: pl.DataFrame | None) -> _Side:
    readable = _readable(units, metric)
    if before is None:
        return _Side(metric, readable, share, None)
    target, legacy = of_same_hours(readable.filter("treated"), before)
    return _Side(metric, target, None, legacy)


def _difference(side: _Side, *, alpha: float) -> Interval:
    if not side.target.height or not side.legacy.height:
        message = (
            f"{side.target.height} units of the target and {side.legacy.height} of legacy; some of each are needed"
        )
        raise TooFewPairs(message)
    if side.metric in ("ttft", "latency"):
        arms = [
            QuantileSequence(quantile=P95, level=1 - alpha).update(arm["bad"].to_numpy()).current()
            for arm in (side.target, side.legacy)
        ]
        return difference_of(*arms)
    if side.share is None:
        return difference_of(*(_mean(side.metric, arm, alpha=alpha) for arm in (side.target, side.legacy)))
    level = 1 - 2 * alpha
    state = (
        AsymptoticDifference(level=level)
        if side.metric == "cost"
        else RandomisedDifference(level=level, smallest_share=min(side.share, 1 - side.share))
    )
    return state.update(side.units["bad"].to_numpy(), side.units["treated"].to_numpy(), share=side.share).current()


def _mean(metric: Metric, arm: pl.DataFrame, *, alpha: float) -> Interval:
    mean = AsymptoticMean if metric == "cost" else BoundedMean
    return mean(level=1 - alpha).update(arm["bad"].to_numpy()).current()


def _readable(units: pl.DataFrame, metric: Metric) -> pl.DataFrame:
    """Keep the units that a value was to be had of, or would have been of a client that had waited."""
    measure = READINGS[metric]
    read = units.select(
        "seen_at", "treated", "left", measure.bad.cast(pl.Float64).alias("bad"), measure.applies.alias("applies")
    )
    return read.filter(pl.col("applies") | pl.col("left") if metric in SPARED and metric in LEFT else "applies")


def _known(side: _Side) -> _Side:
    known = pl.col("bad").is_not_null()
    return side._replace(
        units=side.units.filter(known), before=None if side.before is None else side.before.filter(known)
    )
