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
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks.canary_controllers import (
    METHODS,
    PLAN,
    SHARED,
    FloatArray,
    Judge,
    Ours,
    Simulated,
    Units,
    baseline_of,
    bound_hours,
    dealt,
    difference_lower,
    first_look,
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
        rhythm: How far the mean of both arms swings within a day, in points.
    """

    units_an_hour: int
    loss: float
    rhythm: float = 0.0


def stages_of(world: World, rng: np.random.Generator) -> Iterator[Simulated]:
    """Simulate one ramp."""
    for stage in SHARED:
        hours = round(stage.soak.total_seconds() / 3600)
        n = hours * world.units_an_hour
        treated = dealt(stage, n, rng)
        mean = BASELINE + world.rhythm * np.sin(np.arange(n) / world.units_an_hour * math.pi / 12)
        wrong = rng.random(n) >= np.where(treated, mean * (1 - world.loss), mean)
        units = Units(stage.share, hours, treated, baseline_of(stage, treated, rng))
        yield Simulated(units, {"quality": wrong.astype(np.float64)})


def harm(units: Units, bad: FloatArray, inside: slice, alpha: float) -> int | None:
    """First unit at whose look the loss is proven to exceed the limit, half of alpha being for legacy's mean."""
    lower = difference_lower(units, bad, inside, alpha / 2)
    wrong, control = bad[inside], ~units.treated[inside]
    m = np.maximum(np.cumsum(control), 1)
    legacy = np.cumsum(wrong * control)
    prior = (0.5 + legacy - wrong * control) / m
    squares = np.cumsum(np.where(control, (wrong - prior) ** 2, 0.0))
    base = np.clip((legacy - mean_boundary(alpha / 2)(squares)) / m, 0, 1)
    return first_look(lower > LIMIT * (1 - base), units.a_look)


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
        found = [run(list(stages_of(world, rng)), judges(), units_an_hour=rate) for _ in range(ramps)]
        bound = {"bound_hours": bound_hours(partial(told, world), rate)}
        rows += [world._asdict() | row_of(found, method) | bound for method in METHODS]
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
    show(
        rows,
        {
            "units/h": lambda row: f"{row['units_an_hour']:,}",
            "loss": lambda row: f"{row['loss']:.0%}",
            "rhythm": lambda row: f"{row['rhythm']:g}",
        },
    )


if __name__ == "__main__":
    main()
