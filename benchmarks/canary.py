"""A canary's controller beside three that are in use: false roll backs, regressions caught, delay, units exposed.

    python benchmarks/canary.py [--quick] [--json] [--seed N] [--data FOLDER]

With --data the figures of canary_recorded.py, on recorded errors and times, come after these. In any case those of
canary_watch.py do: our controller at 100 % and in the watch after it, where legacy has no traffic.

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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks import canary_recorded, canary_watch
from benchmarks.canary_controllers import (
    METHODS,
    PLAN,
    SHARED,
    FloatArray,
    Judge,
    Ours,
    Simulated,
    Units,
    arrivals,
    baseline_of,
    bound_hours,
    day,
    dealt,
    difference_lower,
    first_look,
    hours_of,
    mean_boundary,
    row_of,
    run,
    show,
)
from benchmarks.canary_peers import MannWhitney, Threshold, t_test

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT: Final = PLAN.rollout.limits.quality
BASELINE: Final = 0.9


class World(NamedTuple):
    """What happens to the traffic.

    Attributes:
        units_an_hour: Users or conversations that come.
        loss: Of the target's mean, as a share of legacy's.
        rhythm: How far the mean of both arms swings within a day, as a share of one.
        traffic: How far the rate of traffic swings, as a share of it: the busiest hour is the worst one.
    """

    units_an_hour: int
    loss: float
    rhythm: float = 0.0
    traffic: float = 0.0


def stages_of(world: World, rng: np.random.Generator) -> Iterator[Simulated]:
    """Simulate one ramp, which begins at any time of the day."""
    clock = rng.uniform(0, 24)
    for stage in SHARED:
        hours = hours_of(stage)
        at = arrivals(world.units_an_hour, world.traffic, clock=clock, hours=hours)
        treated = dealt(stage, len(at), rng)
        mean = BASELINE + world.rhythm * day(clock + at)
        wrong = rng.random(len(at)) >= np.where(treated, mean * (1 - world.loss), mean)
        units = Units(stage.share, hours, treated, baseline_of(stage, treated, rng), at)
        yield Simulated(units, {"quality": wrong.astype(np.float64)})
        clock += hours


def harm(units: Units, bad: FloatArray, inside: slice, alpha: float) -> int | None:
    """First unit at whose look the loss is proven to exceed the limit, half of alpha being for legacy's mean."""
    lower = difference_lower(units, bad, inside, alpha / 2)
    wrong, control = bad[inside], ~units.treated[inside]
    m = np.maximum(np.cumsum(control), 1)
    legacy = np.cumsum(wrong * control)
    prior = (0.5 + legacy - wrong * control) / m
    squares = np.cumsum(np.where(control, (wrong - prior) ** 2, 0.0))
    base = np.clip((legacy - mean_boundary(alpha / 2)(squares)) / m, 0, 1)
    return first_look(lower > LIMIT * (1 - base), units, inside)


def judges() -> Mapping[str, Mapping[str, Judge]]:
    """Return the judges of one ramp."""
    threshold = Threshold(lambda bad: float(bad.mean()), lambda target, legacy: 1 - target < (1 - LIMIT) * (1 - legacy))
    return {"quality": dict(zip(METHODS, (Ours(harm), threshold, MannWhitney(), t_test), strict=True))}


def told(world: World, share: float) -> float:
    """What a unit tells of a loss beyond the limit, in nats; 0 where there is none to find."""
    distance = max(BASELINE * (world.loss - LIMIT), 0.0)
    return distance**2 / (2 * BASELINE * (1 - BASELINE) * (1 / share + 1 / (1 - share)))


def figures(worlds: list[World], ramps: int, seed: int) -> list[dict[str, object]]:
    """Return one row a world and method."""
    rows = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([seed, number])
        rate = world.units_an_hour
        found = [run(list(stages_of(world, rng)), judges()) for _ in range(ramps)]
        bound = {"bound_hours": bound_hours(partial(told, world), rate)}
        rows += [world._asdict() | row_of(found, method) | bound for method in METHODS]
    return rows


def worlds_of(rates: tuple[int, ...]) -> list[World]:
    """Return what is simulated at each rate."""
    return [
        World(rate, *case)
        for rate in rates
        for case in (
            (0.0,),
            (0.0, 0.05),
            (0.0, 0.05, 0.8),
            (0.05,),
            (0.05, 0.05, 0.8),
            (0.10,),
        )
    ]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="few ramps and rates")
    options.add_argument("--data", type=Path, help="folder with the recordings that canary_recorded.py wants")
    options.add_argument("--seed", type=int, default=20250101)
    chosen = options.parse_args()
    seed = chosen.seed
    if chosen.data and (missing := canary_recorded.missing_in(chosen.data)):
        options.error(missing)
    found = {
        "rows": figures(
            worlds_of((240, 1200) if chosen.quick else (240, 1200, 3600)), 10 if chosen.quick else 100, seed
        ),
        "watch": canary_watch.figures(
            canary_watch.worlds_of((240,) if chosen.quick else (240, 1200)), harm, 4 if chosen.quick else 50, seed
        ),
    }
    if chosen.data:
        found["recorded"] = canary_recorded.recorded(chosen.data, is_quick=chosen.quick, seed=seed)
    if chosen.json:
        print(json.dumps(found))
        return
    show(
        found["rows"],
        {
            "units/h": lambda row: f"{row['units_an_hour']:,}",
            "loss": lambda row: f"{row['loss']:.0%}",
            "rhythm": lambda row: f"{row['rhythm']:g}",
            "traffic": lambda row: f"{row['traffic']:g}",
        },
    )
    canary_watch.show(found["watch"])
    if chosen.data:
        canary_recorded.show_recorded(found["recorded"])


if __name__ == "__main__":
    main()
