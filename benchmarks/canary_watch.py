"""Our controller where legacy has no traffic any more: the stage of 100 % and the watch after completion.

Whole ramps of the default canary (5 % 24 h, 25 % 48 h, 50 % 24 h, 100 % 168 h), and another 168 h of the watch, on
simulated units judged right or wrong (legacy .9), looked at every 30 s. Quality and the rate of traffic swing within a
day, in both arms alike; a ramp begins at any hour. Each ramp is judged by two rules, on the same units:

same hours    `domain/rollout_hours.py`: a window is held against legacy's units of the same hours of the day; there is
              one of 24 h beside the stage and the recent 6 h.
whole stage   What stood there before: the two windows are held against all of legacy's units of the last shared stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from anven_pipelines.domain.rollout_judgement import HISTORIC
from benchmarks.canary_controllers import (
    PLAN,
    RECENT_HOURS,
    SHARED,
    FloatArray,
    Ours,
    Units,
    arrivals,
    baseline_of,
    day,
    dealt,
    hours_of,
    mean_boundary,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.canary_controllers import Harm, IntArray

Rule = Literal["same hours", "whole stage"]

LIMIT: Final = HISTORIC * PLAN.rollout.limits.quality
BASELINE: Final = 0.9
LENGTHS: Final[Mapping[Rule, tuple[int, ...]]] = {"same hours": (RECENT_HOURS, 24), "whole stage": (RECENT_HOURS,)}
ALONE: Final = (hours_of(PLAN.stages[-1]), 168)
"""Hours of the last stage, and of the watch after it that are simulated."""
_ROUNDING: Final = 1e-6  # hours: what a sum of times may be off


class Watched(NamedTuple):
    """What happens to the traffic.

    Attributes:
        units_an_hour: Users or conversations that come, in the mean of a day.
        rhythm: How far the mean of both arms swings within a day, as a share of one.
        traffic: How far the rate of traffic swings, as a share of it: the busiest hour is the worst one; below 0 it is
            the best one.
        loss: Of the target's mean, as a share of legacy's, once it is worse.
        good_hours: At 100 %, until then.
    """

    units_an_hour: int
    rhythm: float
    traffic: float
    loss: float = 0.0
    good_hours: float = 0.0


class Legacy(NamedTuple):
    """Legacy's units of the last shared stage: when each came, by the clock in hours, and whether it was wrong."""

    clock: FloatArray
    bad: FloatArray


class Seen(NamedTuple):
    """Sums after each of some units, in one order."""

    total: FloatArray
    squares: FloatArray

    def bounds(self, n: IntArray, alpha: float) -> tuple[FloatArray, FloatArray]:
        """Return the bounds of the mean of the first n, as `BoundedMean` has them; alpha is its chance on one side."""
        some = np.maximum(n, 1)
        mean, reach = self.total[some - 1] / some, mean_boundary(alpha)(self.squares[some - 1]) / some
        return np.where(n > 0, np.maximum(mean - reach, 0), 0.0), np.where(n > 0, np.minimum(mean + reach, 1), 1.0)


def seen(bad: FloatArray) -> Seen:
    """Sum up units in the order in which they are given."""
    total = np.cumsum(bad)
    prior = (0.5 + total - bad) / np.arange(1, len(bad) + 1)
    return Seen(total, np.cumsum((bad - prior) ** 2))


def alone_harm(legacy: Legacy, *, began: float, rule: Rule) -> Harm:
    """Return how harm is looked for in a stage of 100 % that began at an hour of the clock."""

    def harm(units: Units, bad: FloatArray, inside: slice, alpha: float) -> int | None:
        at = units.at[inside]
        looks = units.looks[(units.looks > inside.start) & (units.looks <= inside.stop)] - inside.start
        n, m, order = looks, np.full(len(looks), len(legacy.bad)), np.arange(len(legacy.bad))
        if rule == "same hours":
            span = at[looks - 1] - at[0]
            days = np.floor((span + _ROUNDING) / 24)
            n = np.where(days > 0, np.searchsorted(at, at[0] + 24 * days - _ROUNDING), looks)
            after = (legacy.clock - began - at[0] + _ROUNDING) % 24
            order = np.argsort(after, kind="stable")
            m = np.searchsorted(after[order], np.where(days > 0, 24, span + 2 * _ROUNDING), side="right")
        target, before = seen(bad[inside]), seen(legacy.bad[order])
        worse = target.bounds(n, alpha / 4)[0] - before.bounds(m, alpha / 4)[1]
        found = np.flatnonzero((worse > LIMIT * (1 - before.bounds(m, alpha / 2)[0])) & (m > 0))
        return int(looks[found[0]]) if found.size else None

    return harm


def wrong_of(world: Watched, clock: FloatArray, is_worse: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw which units are judged wrong."""
    mean = (BASELINE + world.rhythm * day(clock)) * (1 - world.loss * is_worse)
    return np.asarray(rng.random(len(clock)) >= mean, dtype=np.float64)


def ramp(world: Watched, shared_harm: Harm, rng: np.random.Generator) -> dict[Rule, float | None]:
    """Run one ramp; hours at 100 % at which each rule rolled back, below 0 where a shared stage did."""
    clock, began = rng.uniform(0, 24), 0.0
    legacy = Legacy(np.empty(0), np.empty(0))
    for stage in SHARED:
        at = arrivals(world.units_an_hour, world.traffic, clock=clock, hours=hours_of(stage))
        treated = dealt(stage, len(at), rng)
        bad = wrong_of(world, clock + at, np.zeros(len(at)), rng)
        units = Units(stage.share, hours_of(stage), treated, baseline_of(stage, treated, rng), at)
        if Ours(shared_harm)(units, bad) is not None:
            return dict.fromkeys(get_args(Rule), -1.0)
        legacy, clock = Legacy((clock + at)[~treated], bad[~treated]), clock + hours_of(stage)
    found: dict[Rule, float | None] = dict.fromkeys(get_args(Rule))
    for hours in ALONE:
        at = arrivals(world.units_an_hour, world.traffic, clock=clock, hours=hours)
        bad = wrong_of(world, clock + at, (began + at >= world.good_hours).astype(np.float64), rng)
        units = Units(1.0, hours, np.ones(len(at), bool), np.zeros(len(at), bool), at)
        for rule in (rule for rule, hour in found.items() if hour is None):
            n = Ours(alone_harm(legacy, began=clock, rule=rule), LENGTHS[rule])(units, bad)
            found[rule] = None if n is None else began + units.looked(n)
        began, clock = began + hours, clock + hours
    return found


def worlds_of(rates: Sequence[int]) -> list[Watched]:
    """Return what is simulated at each rate: equal targets, and such as get worse at 100 %."""
    return [
        Watched(rate, *case)
        for rate in rates
        for case in (
            (0.0, 0.0),
            (0.05, -0.8),
            (0.05, 0.8),
            (0.10, -0.8),
            (0.10, 0.8),
            (0.05, 0.8, 0.1, 0.0),
            (0.05, 0.8, 0.1, 53.0),
            (0.05, 0.8, 0.2, 53.0),
        )
    ]


def figures(worlds: Sequence[Watched], shared_harm: Harm, ramps: int, seed: int) -> list[dict[str, object]]:
    """Return one row a world and rule."""
    rows: list[dict[str, object]] = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([seed, 1, number])
        found = [ramp(world, shared_harm, rng) for _ in range(ramps)]
        for rule in get_args(Rule):
            hours = [each[rule] for each in found]
            false = [hour is not None and (not world.loss or hour < world.good_hours) for hour in hours]
            delays = [hour - world.good_hours for hour in hours if world.loss and hour and hour >= world.good_hours]
            rows.append(
                world._asdict()
                | {"rule": rule, "ramps": ramps, "false": sum(false) / ramps, "caught": len(delays) / ramps}
                | {"median_hours": float(np.median(delays)) if delays else None}
                | {"p90_hours": float(np.quantile(delays, 0.9)) if delays else None}
            )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print a table."""
    columns = (
        "units/h",
        "swing",
        "traffic",
        "loss",
        "good h",
        "rule",
        "rolled back though good",
        "caught",
        "median h",
        "p90 h",
    )
    table = Table(*columns, box=None, title="100 % and the watch after it")
    for row in rows:
        table.add_row(
            f"{row['units_an_hour']:,}",
            f"{row['rhythm']:g}",
            f"{row['traffic']:+g}",
            f"{row['loss']:.0%}",
            f"{row['good_hours']:g}",
            str(row["rule"]),
            f"{row['false']:.1%}",
            f"{row['caught']:.1%}" if row["loss"] else "",
            *("" if row[name] is None else f"{row[name]:.1f}" for name in ("median_hours", "p90_hours")),
        )
    Console(width=140).print(table)
