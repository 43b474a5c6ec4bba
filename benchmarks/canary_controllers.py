"""What canary.py and canary_recorded.py share: the plan, our bounds at every look at once, a ramp, its figures.

A judge sees the units of one stage and how bad each was, NaN where its request failed and has no such value, and says
at which unit's look it rolls back. Those of the peers stand in canary_peers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.interpolate import CubicSpline

from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.spec_rollout import Rollout, Stage
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import N_OPT, TYPICAL_VARIANCE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PLAN: Final = RolloutPlan(workload="benchmark", rollout=Rollout(), metrics=METRICS)
SHARED: Final = [stage for stage in PLAN.stages if stage.share < 1]
EARLY_HOURS: Final = sum(stage.soak.total_seconds() for stage in SHARED[:2]) / 3600
RECENT_HOURS: Final = round(PLAN.rollout.recent.total_seconds() / 3600)
LOOKS_AN_HOUR: Final = 120
METHODS: Final = ("ours", "threshold", "mann-whitney", "t-test")


@dataclass(frozen=True)
class Units:
    """The units of one stage in the order in which they came.

    Attributes:
        share: Of the target.
        hours: That the stage lasts.
        treated: Whether each was dealt to the target, shape (units,).
        baseline: Whether each is of as many of legacy's units as the target has.
        arrivals: When each came, in hours since the stage began; evenly where that is not said.
    """

    share: float
    hours: int
    treated: BoolArray
    baseline: BoolArray
    arrivals: FloatArray | None = None

    @cached_property
    def at(self) -> FloatArray:
        """When each came, in hours since the stage began."""
        n = len(self.treated)
        return np.arange(n) / (n / self.hours) if self.arrivals is None else self.arrivals

    @cached_property
    def looks(self) -> IntArray:
        """How many had come at each look that shows new ones."""
        seen = self.until(np.arange(1, self.hours * LOOKS_AN_HOUR + 1) / LOOKS_AN_HOUR)
        return np.unique(seen[seen > 0])

    @property
    def a_look(self) -> int:
        """How many come between two looks, where they come evenly."""
        return max(1, len(self.treated) // (self.hours * LOOKS_AN_HOUR))

    def until(self, hours: FloatArray) -> IntArray:
        """How many had come by then."""
        return np.asarray(np.searchsorted(self.at, hours))

    def stretches(self, hours: int) -> list[slice]:
        """Split the stage into stretches of so many hours."""
        ends = self.until(np.arange(0.0, self.hours + hours, hours)).tolist()
        return [slice(start, stop) for start, stop in pairwise(ends)]

    def looked(self, n: int) -> float:
        """Hours at which n units had been seen."""
        return self.hours if n >= len(self.at) else float(self.at[n])


Judge = Callable[[Units, FloatArray], int | None]
Harm = Callable[[Units, FloatArray, slice, float], int | None]


class Simulated(NamedTuple):
    """One stage: its units, and how bad each was in every metric."""

    units: Units
    bad: Mapping[str, FloatArray]
    excess: FloatArray | None = None  # of each unit: how much worse the target would have been for it than legacy

    def excess_at(self, n: int) -> float | None:
        """Return the mean excess of the n units so far, or of those in the recent window where that is more."""
        if self.excess is None:
            return None
        since = max(window.start for window in self.units.stretches(RECENT_HOURS) if window.start < n)
        return max(float(self.excess[:n].mean()), float(self.excess[since:n].mean()))


class Caught(NamedTuple):
    """When and by which metric a controller rolled back: hours since the start, units of the target until then."""

    hours: float
    exposed: int
    metric: str
    excess: float | None  # as `Simulated.excess_at` has it


def hours_of(stage: Stage) -> int:
    """Return how long a stage lasts."""
    return round(stage.soak.total_seconds() / 3600)


def day(clock: FloatArray) -> FloatArray:
    """Return where in its daily swing from -1 to 1 something is, at hours of a clock."""
    return np.asarray(np.sin(clock * math.pi / 12))


def arrivals(units_an_hour: int, swing: float, *, clock: float, hours: int) -> FloatArray:
    """Return when units come, in hours since a stage began: each as soon as one more is due at the rate of the hour.

    Args:
        units_an_hour: In the mean of a day.
        swing: How far the rate swings within a day, as a share of it; it is highest where `day` is lowest.
        clock: The hour at which the stage begins.
        hours: How long it lasts.
    """
    if not swing:
        return np.arange(units_an_hour * hours) / units_an_hour
    minutes: FloatArray = np.arange(hours * 60 + 1) / 60
    turned = np.cos((clock + minutes) * math.pi / 12) - math.cos(clock * math.pi / 12)
    due = units_an_hour * (minutes + swing * 12 / math.pi * turned)
    return np.asarray(np.interp(np.arange(math.floor(due[-1])), due, minutes))


def dealt(stage: Stage, n: int, rng: np.random.Generator) -> BoolArray:
    """Deal units to the target at the share of a stage."""
    return rng.random(n) < stage.share


def baseline_of(stage: Stage, treated: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Draw as many of legacy's units as the target has."""
    return ~treated & (rng.random(len(treated)) < stage.share / (1 - stage.share))


class Boundary:
    """A tabulated boundary: a spline through it, over the logarithm of time, is off by 1e-8 of it."""

    def __init__(self, *, alpha: float, v_opt: float, scale: float) -> None:
        times = np.concatenate([[0.0], np.geomspace(1, 1e7, 200)])
        bounds = [gamma_exponential_bound(v, alpha=alpha, v_opt=v_opt, scale=scale) for v in times.tolist()]
        self._curve = CubicSpline(np.log1p(times), bounds)

    def __call__(self, squares: FloatArray) -> FloatArray:
        """Return the boundary at some intrinsic times."""
        return np.asarray(self._curve(np.log1p(squares)))


@cache
def difference_boundary(share: float, alpha: float) -> Boundary:
    """Return the boundary that `RandomisedDifference` has at a share, alpha being its chance on one side."""
    smallest = min(share, 1 - share)
    v_opt = N_OPT * TYPICAL_VARIANCE / (smallest * (1 - smallest))
    return Boundary(alpha=alpha, v_opt=v_opt, scale=1 / smallest)


@cache
def mean_boundary(alpha: float) -> Boundary:
    """Return the boundary that `BoundedMean` has, alpha being its chance on one side."""
    return Boundary(alpha=alpha, v_opt=N_OPT * TYPICAL_VARIANCE, scale=1)


def difference_lower(units: Units, bad: FloatArray, inside: slice, alpha: float) -> FloatArray:
    """Lower bound of the target's mean less legacy's after each unit, as `RandomisedDifference` has it."""
    treated, bad, share = units.treated[inside], bad[inside], units.share
    before = {arm: _means_before(bad, chosen) for arm, chosen in ((True, treated), (False, ~treated))}
    predicted = before[True] - before[False]
    surprise = bad - np.where(treated, before[True], before[False])
    weighed = surprise * np.where(treated, 1 / share, -1 / (1 - share))
    n = np.arange(1, len(bad) + 1)
    reach = difference_boundary(share, alpha)(np.cumsum(weighed**2)) / n
    return np.asarray(np.clip(np.cumsum(predicted + weighed) / n - reach, -1, 1))


def _means_before(values: FloatArray, chosen: BoolArray) -> FloatArray:
    counts: FloatArray = np.asarray(np.cumsum(chosen) - chosen, dtype=np.float64)
    totals = np.cumsum(values * chosen) - values * chosen
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), 0.5))


def first_look(harmful: BoolArray, units: Units, inside: slice) -> int | None:
    """Return the unit within a slice of the stage at whose look there is harm; None where there is none.

    Args:
        harmful: After each unit of the slice.
        units: Of the stage.
        inside: The slice.
    """
    looks = units.looks[(units.looks > inside.start) & (units.looks <= inside.stop)] - inside.start
    found = np.flatnonzero(harmful[looks - 1])
    return int(looks[found[0]]) if found.size else None


@dataclass(frozen=True)
class Ours:
    """Our judge: harm in the whole stage or in a recent window, as `windows_of` and `compare` look for it.

    `harm` returns the unit within a slice of the stage at whose look harm is proven at an error rate.
    """

    harm: Harm
    lengths: tuple[int, ...] = (RECENT_HOURS,)  # of windows beside the stage, in hours

    def __call__(self, units: Units, bad: FloatArray) -> int | None:
        """Return the unit at whose look harm is proven; None where never."""
        part = PLAN.harm_level / (1 + len(self.lengths))
        found = [self.harm(units, bad, slice(0, len(bad)), part)]
        for length in self.lengths:
            for k, window in enumerate(units.stretches(length), start=1):
                at = self.harm(units, bad, window, part / (k * (k + 1)))
                if at is not None:
                    found.append(window.start + at)
                    break
        return min((at for at in found if at is not None), default=None)


def run(stages: list[Simulated], judges: Mapping[str, Mapping[str, Judge]]) -> dict[str, Caught | None]:
    """Run one ramp; when each method rolled back, by whichever metric was first.

    Args:
        stages: In order.
        judges: By metric and method.
    """
    found: dict[str, Caught | None] = dict.fromkeys(METHODS)
    hours, exposed = 0.0, 0
    for stage in stages:
        units, bad = stage.units, stage.bad
        for method in (method for method in METHODS if found[method] is None):
            at = {metric: judges[metric][method](units, bad[metric]) for metric in judges}
            caught = {metric: unit for metric, unit in at.items() if unit is not None}
            if caught:
                metric = min(caught, key=lambda name: caught[name])
                n = caught[metric]
                until = exposed + int(units.treated[:n].sum())
                found[method] = Caught(hours + units.looked(n), until, metric, stage.excess_at(n))
        if all(found.values()):
            break
        hours, exposed = hours + units.hours, exposed + int(units.treated.sum())
    return found


def bound_hours(told: Callable[[float], float], units_an_hour: int) -> float | None:
    """Return the hours below which no test at the level of a metric can be expected to find harm; None where never.

    Args:
        told: What a unit tells of the harm at a share, in nats (Wald 1945).
        units_an_hour: Rate of traffic.
    """
    needed, hours = math.log(1 / PLAN.harm_level), 0.0
    for stage in SHARED:
        span = stage.soak.total_seconds() / 3600
        an_hour = units_an_hour * told(stage.share)
        if needed <= an_hour * span:
            return hours + needed / an_hour
        needed, hours = needed - an_hour * span, hours + span
    return None


def row_of(found: list[dict[str, Caught | None]], method: str) -> dict[str, object]:
    """Sum up what a method did in all ramps of a world."""
    caught = [each for ramp in found if (each := ramp[method]) is not None]
    return {
        "method": method,
        "times": len(caught),
        "rolled_back": len(caught) / len(found),
        "in_two_stages": sum(each.hours <= EARLY_HOURS for each in caught) / len(found),
        "median_hours": float(np.median([each.hours for each in caught])) if caught else None,
        "median_exposed": float(np.median([each.exposed for each in caught])) if caught else None,
        "by": ", ".join(sorted({each.metric for each in caught})),
        "ramps": len(found),
    }


def show(rows: list[dict[str, object]], world: Mapping[str, Callable[[dict[str, object]], str]]) -> None:
    """Print a table: columns that tell the world of a row, and those that all worlds have."""
    table = Table(*world, "method", "rolled back", "in 2 stages", "median h", "bound h", "exposed", box=None)
    for row in rows:
        table.add_row(
            *(told(row) for told in world.values()),
            str(row["method"]),
            f"{row['rolled_back']:.1%}",
            f"{row['in_two_stages']:.1%}",
            *("" if row[name] is None else f"{row[name]:,.1f}" for name in ("median_hours", "bound_hours")),
            "" if row["median_exposed"] is None else f"{row['median_exposed']:,.0f}",
        )
    Console(width=140).print(table)
