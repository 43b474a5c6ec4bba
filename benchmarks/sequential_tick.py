"""What a look at a canary costs, and how often looking every 30 s raises a false alarm.

    python benchmarks/sequential_tick.py [--quick] [--json] [--seed N]

The tick: 300 new events per arm for errors, quality, p95 latency and the sample ratio, on states that have seen a
million events, read from JSON and written back as a sensor does. Beside it, one Welch t-test over all the events.

The alarms: A/A ramps (benchmarks/canary_ramp.py), once with steady errors and quality, once with a day's rhythm of
them that both arms share; each metric has 5 % to itself. The martingales of p95 and of the shares use up their 5 %, so
they get ten times as many ramps. benchmarks/calibration.py has the canary as a whole.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.confidence_sequence import difference_of
from anven_pipelines.stats.quantile_sequence import QuantileSequence
from anven_pipelines.stats.randomised_difference import RandomisedDifference
from anven_pipelines.stats.sample_ratio import SampleRatio
from benchmarks.canary_ramp import LEAST, LOOKS, count_alarms, difference_boundary, difference_ramp

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LEVEL: Final = 0.95
SEEN: Final = 1_000_000
NEW: Final = 600  # both arms
METRICS: Final = ("errors", "quality", "errors_with_rhythm", "quality_with_rhythm", "p95", "sample_ratio")


class Batch(NamedTuple):
    """Events in the order of arrival."""

    treated: BoolArray
    errors: FloatArray
    quality: FloatArray
    latency_ms: FloatArray


class States(NamedTuple):
    """What a sensor keeps between two ticks."""

    errors: RandomisedDifference
    quality: RandomisedDifference
    target_p95: QuantileSequence
    legacy_p95: QuantileSequence
    sample_ratio: SampleRatio

    def updated(self, batch: Batch) -> States:
        """Take one batch."""
        treated = batch.treated
        return States(
            self.errors.update(batch.errors, treated, share=0.5),
            self.quality.update(batch.quality, treated, share=0.5),
            self.target_p95.update(batch.latency_ms[treated]),
            self.legacy_p95.update(batch.latency_ms[~treated]),
            self.sample_ratio.update([int(treated.sum()), int((~treated).sum())]),
        )


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="30 ticks and 100 ramps instead of 200 and 1,000")
    options.add_argument("--seed", type=int, default=20250101)
    chosen = options.parse_args()
    rng = np.random.default_rng(chosen.seed)
    figures = tick_figures(rng, ticks=30 if chosen.quick else 200)
    figures |= alarm_figures(rng, ramps=100 if chosen.quick else 1_000)
    if chosen.json:
        print(json.dumps(figures | {"seed": chosen.seed}))
        return
    print(
        f"a tick of {NEW} events on {SEEN:,}: median {figures['tick_ms']:.1f} ms, p95 {figures['tick_p95_ms']:.1f} ms"
    )
    print(f"one t-test over them all: median {figures['full_t_test_ms']:.1f} ms; JSON {figures['json_kb']:.1f} kB")
    print(f"\nfalse alarms in A/A ramps of {LOOKS:,} looks")
    print(f"{'':<20}{'ours':>8}{'naive':>8}{'ramps':>8}   3 Monte Carlo errors")
    for metric in METRICS:
        many = metric in {"p95", "sample_ratio"}
        ours, naive = (figures[f"{metric}{kind}_false_alarms"] for kind in ("", "_naive"))
        noise, ramps = figures["count_noise" if many else "noise"], figures["ramps"] * (10 if many else 1)
        print(f"{metric:<20}{ours:>8.2%}{naive:>8.2%}{ramps:>8,.0f}   {noise:.2%}")


def draw(rng: np.random.Generator, events: int) -> Batch:
    """Draw events of two equal arms."""
    return Batch(
        rng.random(events) < 0.5,
        (rng.random(events) < 0.05).astype(np.float64),
        rng.beta(9, 1, size=events),
        rng.lognormal(6, 0.4, size=events),
    )


def tick_figures(rng: np.random.Generator, *, ticks: int) -> dict[str, float]:
    """Time one tick on a million events, and one t-test over them."""
    seen = draw(rng, SEEN)
    one = QuantileSequence(quantile=0.95, level=(1 + LEVEL) / 2)
    difference = RandomisedDifference(smallest_share=LEAST, level=LEVEL)
    states = States(difference, difference, one, one, SampleRatio(shares=(0.5, 0.5))).updated(seen)
    kept = [state.to_json() for state in states]
    taken, peer = [], []
    for _ in range(ticks):
        batch = draw(rng, NEW)
        begun = time.perf_counter()
        kept = tick(kept, batch)
        taken.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        stats.ttest_ind(seen.quality[seen.treated], seen.quality[~seen.treated], equal_var=False)
        peer.append(time.perf_counter() - begun)
    return {
        "tick_ms": 1e3 * float(np.median(taken)),
        "tick_p95_ms": 1e3 * float(np.quantile(taken, 0.95)),
        "full_t_test_ms": 1e3 * float(np.median(peer)),
        "json_kb": sum(map(len, kept)) / 1e3,
    }


def tick(kept: list[str], batch: Batch) -> list[str]:
    """Read the states, take the batch, ask for what a controller asks, write the states."""
    errors, quality, target, legacy, ratio = kept
    states = States(
        RandomisedDifference.from_json(errors),
        RandomisedDifference.from_json(quality),
        QuantileSequence.from_json(target),
        QuantileSequence.from_json(legacy),
        SampleRatio.from_json(ratio),
    ).updated(batch)
    for asked in (states.errors.current, states.quality.current, states.errors.running, states.quality.running):
        asked()
    difference_of(states.target_p95.current(), states.legacy_p95.current())
    return [state.to_json() for state in states]


def alarm_figures(rng: np.random.Generator, *, ramps: int) -> dict[str, float]:
    """Share of ramps with a false alarm, by metric, ours and naive, with 3 Monte Carlo errors of a rate of 5 %."""
    boundary = difference_boundary(1 - LEVEL)
    found = [difference_ramp(rng, boundary, error_rate=1 - LEVEL) for _ in range(ramps)]
    counted = [count_alarms(rng, 100, error_rate=1 - LEVEL) for _ in range(ramps // 10)]
    rates = {name: float(np.mean([ramp[name] for ramp in found])) for name in found[0]}
    rates |= {name: float(np.mean([part[name] for part in counted])) for name in counted[0]}
    figures = {f"{name}_false_alarms": rate for name, rate in rates.items()}
    noise = {"noise": 3 * math.sqrt(0.05 * 0.95 / ramps), "count_noise": 3 * math.sqrt(0.05 * 0.95 / (10 * ramps))}
    return figures | noise | {"ramps": ramps}


if __name__ == "__main__":
    main()
