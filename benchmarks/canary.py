"""A canary's controller beside three that are in use: false roll backs, regressions caught, delay, units exposed.

    python benchmarks/canary.py [--quick] [--json] [--seed N]

Each ramp goes through the shared stages of the default canary (5 % for 24 h, 25 % for 48 h, 50 % for 24 h) on one
simulated stream of units, each judged right or wrong, and looks every 30 s. All four controllers see the same units.

ours          `domain/rollout_measure.py`: harm is a loss proven to exceed 2.5 % of legacy's mean, at the error rate
              that a metric has of the 5 % (7 metrics, 4 stages and the watch after them); the stage and the recent
              6 h are looked at.
threshold     As Argo Rollouts and Flagger do: each hour the target's mean has to be 97.5 % of legacy's; the fifth
              failure rolls back.
mann-whitney  As Kayenta's judge does: each hour the target's means of single minutes are ranked with those of a
              baseline of the same size, drawn from legacy's units; significantly lower at 2 % rolls back.
t-test        Welch's t-test on all units so far at every look, one-sided 5 %.

The bound is the number of units below which no test of level alpha can be expected to tell the loss from the limit:
log(1 / alpha) / D, D being the squared distance from the limit over twice the variance of a unit's effect (Wald 1945,
in its normal approximation), in hours of the stage in which it falls.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import stats

from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.spec_rollout import Rollout
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import N_OPT, TYPICAL_VARIANCE

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PLAN: Final = RolloutPlan(workload="benchmark", rollout=Rollout(), metrics=METRICS)
SHARED: Final = [stage for stage in PLAN.stages if stage.share < 1]
LIMIT: Final = PLAN.rollout.limits.quality
BASELINE: Final = 0.9
LOOKS_AN_HOUR: Final = 120
FAILURES: Final = 5
FEWEST: Final = 30
FEWEST_MINUTES: Final = 10
RANKED: Final = 0.02
METHODS: Final = ("ours", "threshold", "mann-whitney", "t-test")


class World(NamedTuple):
    """What happens to the traffic.

    Attributes:
        units_an_hour: Users or conversations that come.
        loss: Of the target's mean, as a share of legacy's.
        rhythm: How far the mean of both arms swings within a day, in points.
    """

    units_an_hour: int
    loss: float
    rhythm: float = 0.0


class Caught(NamedTuple):
    """When a controller rolled back: hours since the start, units of the target until then; None where it never did."""

    hours: float
    exposed: int


class Stage(NamedTuple):
    """The units of one stage in the order in which they came."""

    share: float
    hours: int
    treated: BoolArray
    right: FloatArray
    baseline: BoolArray  # as many of legacy's units as the target has


def stages_of(world: World, rng: np.random.Generator) -> list[Stage]:
    """Simulate one ramp."""
    found = []
    for stage in SHARED:
        hours = round(stage.soak.total_seconds() / 3600)
        n = hours * world.units_an_hour
        treated = rng.random(n) < stage.share
        mean = BASELINE + world.rhythm * np.sin(np.arange(n) / world.units_an_hour * math.pi / 12)
        right = rng.random(n) < np.where(treated, mean * (1 - world.loss), mean)
        baseline = ~treated & (rng.random(n) < stage.share / (1 - stage.share))
        found.append(Stage(stage.share, hours, treated, right.astype(np.float64), baseline))
    return found


class Boundary:
    """A tabulated boundary: it is concave, so that a line between two points lies below it by little."""

    def __init__(self, *, alpha: float, v_opt: float, scale: float) -> None:
        self._times = np.concatenate([[0.0], np.geomspace(1, 1e7, 200)])
        self._bounds = np.array(
            [gamma_exponential_bound(v, alpha=alpha, v_opt=v_opt, scale=scale) for v in self._times.tolist()]
        )

    def __call__(self, squares: FloatArray) -> FloatArray:
        """Return the boundary at some intrinsic times."""
        return np.asarray(np.interp(squares, self._times, self._bounds))


class Boundaries:
    """The boundaries of all windows, by share and error rate, made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[float, float], tuple[Boundary, Boundary]] = {}

    def of(self, share: float, alpha: float) -> tuple[Boundary, Boundary]:
        """Return the boundary of the difference and of legacy's mean, each at half of the error rate."""
        if (share, alpha) not in self._made:
            smallest = min(share, 1 - share)
            v_opt = N_OPT * TYPICAL_VARIANCE
            difference = Boundary(alpha=alpha / 2, v_opt=v_opt / (smallest * (1 - smallest)), scale=1 / smallest)
            mean = Boundary(alpha=alpha / 2, v_opt=v_opt, scale=1)
            self._made[share, alpha] = difference, mean
        return self._made[share, alpha]


def ours(stage: Stage, boundaries: Boundaries) -> int | None:
    """Return the unit at whose look harm is proven, in the whole stage or in a recent window; None where never."""
    half = PLAN.harm_level / 2
    a_look = max(1, len(stage.treated) // (stage.hours * LOOKS_AN_HOUR))
    recent = round(PLAN.rollout.recent.total_seconds() / 3600)
    window = len(stage.treated) // stage.hours * recent
    found = [_harm(stage.treated, stage.right, stage.share, a_look, boundaries.of(stage.share, half))]
    for k, start in enumerate(range(0, len(stage.treated), window), start=1):
        inside = slice(start, start + window)
        at = _harm(
            stage.treated[inside],
            stage.right[inside],
            stage.share,
            a_look,
            boundaries.of(stage.share, half / (k * (k + 1))),
        )
        if at is not None:
            found.append(start + at)
            break
    return min((at for at in found if at is not None), default=None)


def _harm(
    treated: BoolArray, right: FloatArray, share: float, a_look: int, bounds: tuple[Boundary, Boundary]
) -> int | None:
    """First unit at whose look the lower bound of the loss exceeds the limit, as `RandomisedDifference` has them."""
    bad = 1 - right
    n = np.arange(1, len(bad) + 1)
    before = {arm: _means_before(bad, chosen) for arm, chosen in ((True, treated), (False, ~treated))}
    predicted = before[True] - before[False]
    surprise = bad - np.where(treated, before[True], before[False])
    weighed = surprise * np.where(treated, 1 / share, -1 / (1 - share))
    loss = np.cumsum(predicted + weighed) / n
    lower = np.clip(loss - bounds[0](np.cumsum(weighed**2)) / n, -1, 1)
    m = np.maximum(np.cumsum(~treated), 1)
    prior = (0.5 + np.cumsum(bad * ~treated) - bad * ~treated) / m
    legacy = np.cumsum(bad * ~treated) / m
    base = np.clip(legacy - bounds[1](np.cumsum(np.where(treated, 0.0, (bad - prior) ** 2))) / m, 0, 1)
    looks = np.flatnonzero((lower > LIMIT * (1 - base))[a_look - 1 :: a_look])
    return int(looks[0] + 1) * a_look if looks.size else None


def _means_before(values: FloatArray, chosen: BoolArray) -> FloatArray:
    counts: FloatArray = np.asarray(np.cumsum(chosen) - chosen, dtype=np.float64)
    totals = np.cumsum(values * chosen) - values * chosen
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), 0.5))


def threshold(stage: Stage, failures: int) -> tuple[int | None, int]:
    """Return the unit at which the fifth hour has failed, and how many failed so far."""
    size = len(stage.treated) // stage.hours
    for hour in range(stage.hours):
        inside = slice(hour * size, (hour + 1) * size)
        treated, right = stage.treated[inside], stage.right[inside]
        if treated.any() and right[treated].mean() < (1 - LIMIT) * right[~treated].mean():
            failures += 1
            if failures >= FAILURES:
                return (hour + 1) * size, failures
    return None, failures


def mann_whitney(stage: Stage) -> int | None:
    """Return the unit at the end of the first hour whose minutes rank significantly lower."""
    size = len(stage.treated) // stage.hours
    minute = np.arange(size) * 60 // size
    for hour in range(stage.hours):
        inside = slice(hour * size, (hour + 1) * size)
        target, legacy = (
            _minutes(minute[arm], stage.right[inside][arm]) for arm in (stage.treated[inside], stage.baseline[inside])
        )
        if min(len(target), len(legacy)) < FEWEST_MINUTES or target.mean() >= legacy.mean():
            continue
        if stats.mannwhitneyu(target, legacy, alternative="two-sided").pvalue < RANKED:
            return (hour + 1) * size
    return None


def _minutes(minute: npt.NDArray[np.int64], right: FloatArray) -> FloatArray:
    """Return the mean of each minute in which a unit came."""
    counts: npt.NDArray[np.int64] = np.bincount(minute, minlength=60)
    totals = np.bincount(minute, right, minlength=60)
    return np.asarray(totals[counts > 0] / counts[counts > 0])


def t_test(stage: Stage) -> int | None:
    """Return the unit at whose look Welch's t-test finds the target worse."""
    a_look = max(1, len(stage.treated) // (stage.hours * LOOKS_AN_HOUR))
    n: list[FloatArray] = []
    mean: list[FloatArray] = []
    error: list[FloatArray] = []
    for arm in (stage.treated, ~stage.treated):
        count, total = (np.cumsum(arm * stage.right**power)[a_look - 1 :: a_look] for power in (0, 1))
        enough = np.maximum(count, 2)
        n.append(count)
        mean.append(total / enough)
        error.append(np.maximum(mean[-1] * (1 - mean[-1]), 1e-12) / (enough - 1))
    t = (mean[1] - mean[0]) / np.sqrt(error[0] + error[1])
    looks = np.flatnonzero((t > stats.norm.isf(0.05)) & (np.minimum(*n) >= FEWEST))
    return int(looks[0] + 1) * a_look if looks.size else None


def run(world: World, rng: np.random.Generator, boundaries: Boundaries) -> dict[str, Caught | None]:
    """Run one ramp; when each controller rolled back."""
    found: dict[str, Caught | None] = dict.fromkeys(METHODS)
    hours, exposed, failures = 0.0, 0, 0
    for stage in stages_of(world, rng):
        late, failures = threshold(stage, failures)
        at = {
            "ours": ours(stage, boundaries),
            "threshold": late,
            "mann-whitney": mann_whitney(stage),
            "t-test": t_test(stage),
        }
        for method, unit in at.items():
            if found[method] is None and unit is not None:
                found[method] = Caught(hours + unit / world.units_an_hour, exposed + int(stage.treated[:unit].sum()))
        hours, exposed = hours + stage.hours, exposed + int(stage.treated.sum())
    return found


def bound_hours(world: World) -> float | None:
    """Return the hours below which no test can be expected to find the loss; None where there is none to find."""
    distance = BASELINE * (world.loss - LIMIT)
    if distance <= 0:
        return None
    needed, hours = math.log(1 / PLAN.harm_level), 0.0
    variance = BASELINE * (1 - BASELINE)
    for stage in SHARED:
        span = stage.soak.total_seconds() / 3600
        an_hour = world.units_an_hour * distance**2 / (2 * variance * (1 / stage.share + 1 / (1 - stage.share)))
        if needed <= an_hour * span:
            return hours + needed / an_hour
        needed, hours = needed - an_hour * span, hours + span
    return None


def figures(worlds: list[World], ramps: int, seed: int) -> list[dict[str, object]]:
    """Return one row a world and method."""
    boundaries, rows = Boundaries(), []
    early = sum(stage.soak.total_seconds() for stage in SHARED[:2]) / 3600
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([seed, number])
        found = [run(world, rng, boundaries) for _ in range(ramps)]
        for method in METHODS:
            caught = [each for ramp in found if (each := ramp[method]) is not None]
            rows.append(
                {
                    **world._asdict(),
                    "method": method,
                    "rolled_back": len(caught) / ramps,
                    "in_two_stages": sum(each.hours <= early for each in caught) / ramps,
                    "median_hours": float(np.median([each.hours for each in caught])) if caught else None,
                    "median_exposed": float(np.median([each.exposed for each in caught])) if caught else None,
                    "bound_hours": bound_hours(world),
                    "ramps": ramps,
                }
            )
    return rows


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="20 ramps a row and two rates instead of 200 and three")
    options.add_argument("--seed", type=int, default=20250101)
    chosen = options.parse_args()
    rates = (240, 1200) if chosen.quick else (240, 1200, 3600)
    worlds = [
        World(rate, loss, rhythm)
        for rate in rates
        for loss, rhythm in ((0.0, 0.0), (0.0, 0.05), (0.05, 0.0), (0.10, 0.0))
    ]
    rows = figures(worlds, 20 if chosen.quick else 200, chosen.seed)
    if chosen.json:
        print(json.dumps({"rows": rows}))
        return
    names = ("units/h", "loss", "rhythm", "method", "rolled back", "in 2 stages", "median h", "bound h", "exposed")
    table = Table(*names, box=None)
    for row in rows:
        table.add_row(
            f"{row['units_an_hour']:,}",
            f"{row['loss']:.0%}",
            f"{row['rhythm']:g}",
            str(row["method"]),
            f"{row['rolled_back']:.1%}",
            f"{row['in_two_stages']:.1%}",
            *("" if row[name] is None else f"{row[name]:,.1f}" for name in ("median_hours", "bound_hours")),
            "" if row["median_exposed"] is None else f"{row['median_exposed']:,.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
