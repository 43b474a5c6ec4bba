"""A canary's controller beside three that are in use, on recorded errors, times to first token and latencies.

    python benchmarks/canary_recorded.py [--quick] [--json] [--seed N] [--ramps N] [--data FOLDER]

FOLDER holds the recordings, which are no part of the project: see recorded_streams.py, which also says how streams are
drawn from them. A ramp is that of canary.py. A world sets a legacy beside a target and what is done to it: later times,
or another provider's failures mixed into a share of its blocks (`lepton's failures in 5%`), as bursts or spread evenly.
Equal arms are the same provider twice. A ramp is rolled back where any metric does it; the last table pools equal arms.

ours          `domain/rollout_measure.py`, as in canary.py, on three metrics: the share of failures, and p95 of both
              times, of which a failed request has an endless one.
threshold     As Argo Rollouts and Flagger do: each hour the same figures of the target may be as much worse as our
              limits; the fifth failure of a metric rolls back.
mann-whitney  As Kayenta's judge does: each hour the shares or p95 of single minutes are ranked; 2 %.
t-test        Welch's t-test of the means at every look, one-sided 5 %.

The last three see the times of what was answered alone. The bound is canary.py's: log(1 / alpha) / D, D being the
least Kullback-Leibler divergence, a unit, of what is recorded from a pair of arms that is within the limit (of shares,
or of any distributions with such p95), for the metric that tells most. It takes units as independent, and is left out
where failures come in bursts, which tell less; it is missing, too, where 96 h are too few.

`excess` tells, of those rolled back for failures, how many more of the units so far (of the stage, or of the recent
window where that is more) would have failed with the target than with legacy: a simulation knows both of each unit.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from anven_pipelines.domain.rollout_measure import P95
from anven_pipelines.stats.proportions import clopper_pearson_interval
from benchmarks.canary_controllers import (
    METHODS,
    PLAN,
    Caught,
    FloatArray,
    Judge,
    Ours,
    Units,
    bound_hours,
    difference_lower,
    first_look,
    row_of,
    run,
    show,
)
from benchmarks.canary_p95 import divergence, p95_harm, told_of_p95
from benchmarks.canary_peers import MannWhitney, Threshold, t_test
from benchmarks.recorded_streams import DATA, PROVIDERS, Recording, World, path_of, read, served, stages_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMITS: Final = {
    "errors": PLAN.rollout.limits.errors,
    "ttft": PLAN.rollout.limits.ttft_ms,
    "latency": PLAN.rollout.limits.latency_ms,
}
KIND: Final = ("units_an_hour", "apart", "method")


def error_harm(units: Units, bad: FloatArray, inside: slice, alpha: float) -> int | None:
    """First unit at whose look more failures are proven than the limit allows."""
    return first_look(difference_lower(units, bad, inside, alpha) > LIMITS["errors"], units, inside)


def judges() -> Mapping[str, Mapping[str, Judge]]:
    """Return the judges of one ramp."""
    return {metric: dict(zip(METHODS, _judges_of(metric, limit), strict=True)) for metric, limit in LIMITS.items()}


def _judges_of(metric: str, limit: float) -> tuple[Judge, ...]:
    def is_worse(target: float, legacy: float) -> bool:
        return target > legacy + limit

    if metric == "errors":
        return Ours(error_harm), Threshold(lambda bad: float(bad.mean()), is_worse), MannWhitney(), t_test
    threshold = Threshold(lambda bad: float(np.quantile(bad, P95)), is_worse)
    return Ours(partial(p95_harm, limit=limit)), threshold, MannWhitney(P95), t_test


def told(world: World, recordings: Mapping[str, Recording], share: float) -> float:
    """Return the most that a unit tells of harm in any one metric, in nats; 0 where there is none to find."""
    legacy, target = recordings[world.legacy], served(world, recordings[world.target])
    mixed = world.mixed * recordings[world.bursts].failed.mean() if world.bursts else 0.0
    found = [_told_of_errors(target.failed.mean() * (1 - mixed) + mixed, legacy.failed.mean(), share)]
    for metric, late, usual in (
        ("ttft", target.ttft_ms, legacy.ttft_ms),
        ("latency", target.latency_ms, legacy.latency_ms),
    ):
        # A failure is endlessly late; so many of them beside the recorded ones are what is mixed in.
        lost = np.full(round(len(late) * mixed / (1 - mixed)), np.inf)
        arms = np.append(np.nan_to_num(late, nan=np.inf), lost), np.nan_to_num(usual, nan=np.inf)
        found.append(told_of_p95(*arms, limit=LIMITS[metric], share=share))
    return max(found)


def _told_of_errors(target: float, legacy: float, share: float) -> float:
    if target <= legacy + LIMITS["errors"]:
        return 0.0
    within: FloatArray = np.linspace(0, 1 - LIMITS["errors"], 100_001)
    tells = share * divergence(target, within + LIMITS["errors"]) + (1 - share) * divergence(legacy, within)
    return float(tells.min())


def bound_of(world: World, recordings: Mapping[str, Recording]) -> float | None:
    """Return the bound in hours; None where failures come in bursts, or there is nothing to find."""
    fails = recordings[world.legacy].failed.any() or recordings[world.target].failed.any()
    if fails or (world.bursts and world.burst > 1):
        return None
    return bound_hours(partial(told, world, recordings), world.units_an_hour)


def worlds_of(rates: tuple[int, ...]) -> list[World]:
    """Return what is simulated at each rate: equal arms, and those that differ."""
    equal = [World(rate, name, name, apart=apart) for rate in rates for apart in (False, True) for name in PROVIDERS]
    return equal + [
        world
        for rate in rates
        for world in (
            World(rate, "anyscale", "anyscale", bursts="lepton", mixed=0.05),
            World(rate, "anyscale", "anyscale", bursts="lepton", mixed=0.05, burst=1),
            World(rate, "anyscale", "anyscale", bursts="bedrock", mixed=0.1),
            World(rate, "anyscale", "anyscale", ttft_share=0.3),
            World(rate, "together", "together", ttft_share=0.3),
            World(rate, "anyscale", "anyscale", ttft_ms=300),
            World(rate, "anyscale", "anyscale", latency_share=0.5),
            World(rate, "together", "anyscale"),
            World(rate, "anyscale", "together"),
            World(rate, "anyscale", "bedrock"),
        )
    ]


def figures(worlds: list[World], recordings: Mapping[str, Recording], ramps: int, seed: int) -> list[dict[str, object]]:
    """Return one row a world and method."""
    rows = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([seed, number])
        bound = {"bound_hours": bound_of(world, recordings)}
        found = [run(list(stages_of(world, recordings, rng)), judges()) for _ in range(ramps)]
        rows += [
            {"world": world.name, "equal": world.is_equal}
            | world._asdict()
            | row_of(found, method)
            | bound
            | truth_of(found, method)
            for method in METHODS
        ]
    return rows


def truth_of(found: list[dict[str, Caught | None]], method: str) -> dict[str, object]:
    """Tell of the ramps rolled back for failures how many more there really were, and in which share none too many."""
    caught = [each.excess for ramp in found if (each := ramp[method]) and each.metric == "errors"]
    excess = [each for each in caught if each is not None]
    unfounded = sum(each <= LIMITS["errors"] for each in excess) / len(found)
    return {"median_excess": float(np.median(excess)) if excess else None, "unfounded": unfounded}


def equal_of(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Pool the ramps of equal arms over the providers; the exact interval is two-sided at 95 %."""
    equal = [row for row in rows if row["equal"]]
    found = []
    for kind in dict.fromkeys(tuple(row[name] for name in KIND) for row in equal):
        of_kind = [row for row in equal if tuple(row[name] for name in KIND) == kind]
        n, times = (sum(cast("int", row[name]) for row in of_kind) for name in ("ramps", "times"))
        interval = clopper_pearson_interval(times, n, level=0.95)
        pooled = {"rolled_back": times / n, "lower": interval.lower, "upper": interval.upper, "ramps": n}
        found.append(dict(zip(KIND, kind, strict=True)) | pooled)
    return found


def missing_in(folder: Path) -> str | None:
    """Say which recording a folder lacks; None where it has all."""
    missing = [path for path in map(partial(path_of, folder), PROVIDERS) if not path.is_file()]
    return (
        f"{missing[0]} is missing; --data names the folder with llmperf-leaderboard's raw results" if missing else None
    )


def recorded(folder: Path, *, is_quick: bool, seed: int, ramps: int | None = None) -> list[dict[str, object]]:
    """Measure all worlds; one row a world and method."""
    recordings = {provider: read(provider, folder) for provider in PROVIDERS}
    worlds = worlds_of((240,) if is_quick else (240, 1200))
    return figures(worlds, recordings, ramps or (5 if is_quick else 75), seed)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="the lower rate and few ramps")
    options.add_argument("--ramps", type=int, help="a row; 75, with --quick 5, where not given")
    options.add_argument("--seed", type=int, default=20250101)
    options.add_argument("--data", type=Path, default=DATA, help="folder with the recordings")
    chosen = options.parse_args()
    if missing := missing_in(chosen.data):
        options.error(missing)
    rows = recorded(chosen.data, is_quick=chosen.quick, seed=chosen.seed, ramps=chosen.ramps)
    if chosen.json:
        print(json.dumps({"rows": rows, "equal": equal_of(rows)}))
        return
    show_recorded(rows)


def show_recorded(rows: list[dict[str, object]]) -> None:
    """Print both tables."""
    show(
        rows,
        {
            "units/h": lambda row: f"{row['units_an_hour']:,}",
            "legacy > target": lambda row: str(row["world"]),
            "by": lambda row: str(row["by"]),
            "excess": lambda row: "" if row["median_excess"] is None else f"{row['median_excess']:.1%}",
        },
    )
    show_equal(equal_of(rows))


def show_equal(pooled: list[dict[str, object]]) -> None:
    """Print how often equal arms were rolled back, all providers together."""
    table = Table("units/h", "bursts", "method", "equal arms rolled back", "95 %", "ramps", box=None)
    for row in pooled:
        table.add_row(
            f"{row['units_an_hour']:,}",
            "apart" if row["apart"] else "meet both",
            str(row["method"]),
            f"{row['rolled_back']:.1%}",
            f"{row['lower']:.1%} to {row['upper']:.1%}",
            str(row["ramps"]),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
