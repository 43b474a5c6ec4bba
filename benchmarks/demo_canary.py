"""How often the demo's canary ends as it should: a good target at 100 %, one that turns bad back at legacy.

    python benchmarks/demo_canary.py [--quick] [--json] [--ramps N] [--seed N]

The demo's own plan (`nano/demo_world.py`) and the controller's own code, on simulated units: each is one call, judged
right or wrong, with log-normal times (median 100 ms to the first token, p95 440 ms: a proxy and two models share two
cores). Legacy is right in 91 % of all cases and the target in 96 %, as measured on these models; a target that
regresses is right in 49 % from the 40th call on. The controller looks every two seconds. Calls that fail or hang are
the breaker's, which is simulated in tests/domain/test_breaker.py.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from anven_pipelines.demo_canary import FAULT_AFTER, LONGEST
from anven_pipelines.domain.rollout import Hold, RollBack, decide
from anven_pipelines.domain.rollout_evidence import Evidence
from anven_pipelines.domain.rollout_measure import UNITS, assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_plan import RolloutPlan, plan_of
from anven_pipelines.domain.rollout_status import RolloutStatus
from anven_pipelines.nano.demo_world import migration
from anven_pipelines.spec import Migration

LOOK_S: Final = 2.0
MEDIAN_MS: Final = 100.0
SPREAD: Final = 0.9
LEGACY_RIGHT: Final = 0.91
START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class World(NamedTuple):
    """What happens to the traffic.

    Attributes:
        calls_a_second: Calls, each of another user.
        right: Share of the target's answers that are right ...
        right_later: ... and from call FAULT_AFTER on.
    """

    calls_a_second: float
    right: float = 0.96
    right_later: float = 0.96


class Ended(NamedTuple):
    """How a canary ended, and after how many seconds and calls."""

    phase: str
    seconds: float
    calls: int


WORLDS: Final = {
    "a good target, 20 calls/s": World(20),
    "a good target, 6 calls/s": World(6),
    "a target as good as legacy, 20 calls/s": World(20, right=0.91, right_later=0.91),
    "a target that regresses, 20 calls/s": World(20, right_later=0.49),
}


def main() -> None:
    """Simulate and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="10 ramps")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--ramps", type=int, default=200, help="of each world; default: 200")
    options.add_argument("--seed", type=int, default=20250101)
    chosen = options.parse_args()
    ramps = 10 if chosen.quick else chosen.ramps
    found = {name: figures(world, ramps, chosen.seed) for name, world in WORLDS.items()}
    if chosen.json:
        print(json.dumps(found))
        return
    for name, each in found.items():
        print(
            f"{name}: completed {each['completed']:.1%}, rolled back {each['rolled_back']:.1%}; "
            f"median {each['seconds_p50']:.0f} s, p95 {each['seconds_p95']:.0f} s, {each['calls_p50']:.0f} calls"
        )


def figures(world: World, ramps: int, seed: int) -> dict[str, float]:
    """Run a world's ramps and say how they ended."""
    plan = plan_of(Migration.model_validate(migration(url="http://t", legacy_url="http://l", adapted=True)))
    ended = [ramp(plan, world, np.random.default_rng([seed, number])) for number in range(ramps)]
    seconds = [each.seconds for each in ended]
    return {
        "completed": sum(each.phase == "completed" for each in ended) / ramps,
        "rolled_back": sum(each.phase == "rolled back" for each in ended) / ramps,
        "seconds_p50": float(np.quantile(seconds, 0.5)),
        "seconds_p95": float(np.quantile(seconds, 0.95)),
        "calls_p50": float(np.quantile([each.calls for each in ended], 0.5)),
    }


def ramp(plan: RolloutPlan, world: World, rng: np.random.Generator) -> Ended:
    """Go through the stages of one canary."""
    before, now, calls = None, START, 0
    for place, stage in enumerate(plan.stages):
        entered, left_s = now, LONGEST.total_seconds() - (now - START).total_seconds()
        units = stage_units(world, stage.share, entered, math.ceil(left_s * world.calls_a_second), calls, rng)
        while True:
            now += timedelta(seconds=LOOK_S)
            if now - START > LONGEST:
                return Ended("running", (now - START).total_seconds(), calls)
            seen = settled(units, plan, now)
            decision = decide(
                plan,
                RolloutStatus(phase="running", generation=1, stage=place, entered_at=entered, plan=plan.digest),
                evidence(plan, place, seen, before, entered=entered, now=now),
                now=now,
            )
            if not isinstance(decision, Hold):
                break
        calls += int((units["seen_at"] <= now).sum())
        if isinstance(decision, RollBack):
            return Ended("rolled back", (now - START).total_seconds(), calls)
        before = seen
    return Ended("completed", (now - START).total_seconds(), calls)


def stage_units(
    world: World, share: float, entered: datetime, count: int, before: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Draw the units of a stage, as many as could come."""
    number, treated = np.arange(count), rng.random(count) < share
    of_target = np.where(number + before < FAULT_AFTER, world.right, world.right_later)
    ttft_ms = rng.lognormal(math.log(MEDIAN_MS), SPREAD, count)
    columns = {
        "unit": [f"{each:032x}" for each in range(count)],
        "seen_at": [entered + timedelta(seconds=each) for each in (number / world.calls_a_second).tolist()],
        "treated": treated,
        "errors": 0.0,
        "quality": (rng.random(count) < np.where(treated, of_target, LEGACY_RIGHT)).astype(np.float64),
        "ttft_ms": ttft_ms,
        "latency_ms": 1.5 * ttft_ms,
        "cost_usd": 1e-5 * rng.lognormal(0, 0.3, count),
        "streamed": True,
        "timed": True,
        "left": False,
        "due": True,
        "fell_back": False,
        "moved": False,
    }
    return pl.DataFrame({**columns, "contract": None, "safety": None}, schema=UNITS.schema)


def settled(units: pl.DataFrame, plan: RolloutPlan, now: datetime) -> pl.DataFrame:
    """Return the units that count by now, and whose scores are due."""
    counted = pl.col("seen_at") + plan.rollout.settle
    return units.filter(counted <= now).with_columns((counted + plan.rollout.label_delay <= now).alias("due"))


def evidence(
    plan: RolloutPlan, place: int, units: pl.DataFrame, before: pl.DataFrame | None, *, entered: datetime, now: datetime
) -> Evidence:
    """Judge the units as `resources/production_metrics.py` does."""
    if units.is_empty():
        return Evidence(generation=1, as_of=now)
    windows = windows_of(units, plan, entered_at=entered, now=now)
    comparisons = compare(plan, place, windows, before=before)
    return Evidence(generation=1, as_of=now, comparisons=comparisons, assignment=assignment_of(plan, place, units))


if __name__ == "__main__":
    main()
