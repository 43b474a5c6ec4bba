"""What a look at a canary costs, and how often looking every 30 s raises a false alarm.

    python benchmarks/sequential_tick.py [--quick] [--json] [--seed N]

The tick: 300 new events per arm for errors, quality, p95 latency and the sample ratio, on states that have seen a
million events, read from JSON and written back as a sensor does. Beside it, one Welch t-test over all the events.

The alarms: an A/A ramp of 72 h (5 %, 25 %, 50 % for 24 h each), looked at 8,640 times; once with steady errors and
quality, once with a day's rhythm of them that both arms share. An alarm is an interval without zero, or a p-value below
5 %, at any look; each metric has 5 % to itself. Beside it, tests made for one look: Welch's t, a binomial z for each
arm's p95 and for the shares. For p95 an alarm counts as soon as one arm's bounds miss the true value, which is more
often than that two arms contradict each other. Its martingale and that of the shares use up their 5 %, so they get
ten times as many ramps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.boundaries import beta_binomial_evidence, beta_binomial_weight, gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import N_OPT, TYPICAL_VARIANCE, difference_of
from anven_pipelines.stats.quantile_sequence import QuantileSequence
from anven_pipelines.stats.randomised_difference import RandomisedDifference
from anven_pipelines.stats.sample_ratio import PRIOR_WEIGHT, SampleRatio

if TYPE_CHECKING:
    from collections.abc import Iterator

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LEVEL: Final = 0.95
SEEN: Final = 1_000_000
NEW: Final = 600  # both arms
LOOKS: Final = 72 * 60 * 2
A_LOOK: Final = 10  # events between two looks: 20 a minute
SHARES: Final = np.repeat([0.05, 0.25, 0.5], LOOKS // 3)
LEAST: Final = float(SHARES.min())
FEWEST: Final = 30  # events an arm before a test made for one look is asked
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
    boundary = difference_boundary()
    found = [difference_ramp(rng, boundary) for _ in range(ramps)]
    counted = [count_alarms(rng, 100) for _ in range(ramps // 10)]
    rates = {name: float(np.mean([ramp[name] for ramp in found])) for name in found[0]}
    rates |= {name: float(np.mean([part[name] for part in counted])) for name in counted[0]}
    figures = {f"{name}_false_alarms": rate for name, rate in rates.items()}
    noise = {"noise": 3 * math.sqrt(0.05 * 0.95 / ramps), "count_noise": 3 * math.sqrt(0.05 * 0.95 / (10 * ramps))}
    return figures | noise | {"ramps": ramps}


def difference_boundary() -> tuple[FloatArray, FloatArray]:
    """Tabulate the boundary of `RandomisedDifference`: it is concave, so a line between two points lies below it."""
    v_opt = N_OPT * TYPICAL_VARIANCE / (LEAST * (1 - LEAST))
    times = np.concatenate([[0.0], np.geomspace(1, 1e8, 400)])
    alpha = (1 - LEVEL) / 2
    bounds = [gamma_exponential_bound(v, alpha=alpha, v_opt=v_opt, scale=1 / LEAST) for v in times.tolist()]
    return times, np.array(bounds)


def difference_ramp(rng: np.random.Generator, boundary: tuple[FloatArray, FloatArray]) -> dict[str, bool]:
    """Run one A/A ramp; whether each test of a difference ever alarmed."""
    shares = np.repeat(SHARES, A_LOOK)
    treated = rng.random(shares.size) < shares
    day = np.sin(np.linspace(0, 6 * math.pi, shares.size))
    found: dict[str, bool] = {}
    for ending, rhythm in (("", 0 * day), ("_with_rhythm", day)):
        outcomes = {
            "errors": (rng.random(shares.size) < 0.05 + 0.02 * rhythm).astype(np.float64),
            "quality": rng.beta(9 + 3 * rhythm, 1),
        }
        for name, values in outcomes.items():
            found[f"{name}{ending}"] = difference_alarms(values, treated, boundary)
            found[f"{name}{ending}_naive"] = t_test_alarms(values, treated)
    return found


def difference_alarms(values: FloatArray, treated: BoolArray, boundary: tuple[FloatArray, FloatArray]) -> bool:
    """Whether a look at `RandomisedDifference` would ever have left out 0."""
    state, parts = RandomisedDifference(smallest_share=LEAST, level=LEVEL), []
    for share, stage in stages():
        found = state.effects_of(values[stage], treated[stage], share=share, default=0.5)
        state = replace(state, **found.arms)
        parts.append(found)
    effects, predicted = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    totals, squares = np.cumsum(effects), np.cumsum((effects - predicted) ** 2)
    return bool((np.abs(at_looks(totals)) > np.interp(at_looks(squares), *boundary)).any())


def t_test_alarms(values: FloatArray, treated: BoolArray) -> bool:
    """Whether Welch's t-test would ever have fallen below 5 %, from 30 events an arm on."""
    n, means, errors = [], [], []
    for arm in (treated, ~treated):
        count, total, square = (at_looks(np.cumsum(arm * values**power)) for power in (0, 1, 2))
        enough = np.maximum(count, 2)
        n.append(count)
        means.append(total / enough)
        errors.append(np.maximum(square / enough - means[-1] ** 2, 0) / (enough - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (means[0] - means[1]) / np.sqrt(errors[0] + errors[1])
    return bool((np.abs(t) > stats.t.isf((1 - LEVEL) / 2, np.minimum(*n) - 1))[np.minimum(*n) >= FEWEST].any())


def count_alarms(rng: np.random.Generator, ramps: int) -> dict[str, BoolArray]:
    """Whether each of some ramps ever alarmed, for what rests on counts alone."""
    treated = rng.binomial(A_LOOK, SHARES, size=(ramps, LOOKS))
    found = dict.fromkeys(("p95", "p95_naive"), np.zeros(ramps, dtype=np.bool_))
    alpha = (1 - LEVEL) / 2  # for each arm
    for arm in (treated, A_LOOK - treated):
        n, won = np.cumsum(arm, axis=1), np.cumsum(rng.binomial(arm, 0.95), axis=1)
        evidence = beta_binomial_evidence(won, n - won, share=0.95, weight=beta_binomial_weight(N_OPT, alpha))
        found["p95"] = found["p95"] | (evidence > -math.log(alpha)).any(axis=1)
        far = np.abs(won - 0.95 * n) > stats.norm.isf(alpha / 2) * np.sqrt(0.95 * 0.05 * n)
        found["p95_naive"] = found["p95_naive"] | (far & (n >= FEWEST)).any(axis=1)
    return found | sample_ratio_alarms(treated)


def sample_ratio_alarms(treated: npt.NDArray[np.int64]) -> dict[str, BoolArray]:
    """Whether the shares were ever found to differ from the assigned ones."""
    before, most = np.zeros(len(treated)), np.zeros(len(treated))
    for share in np.unique(SHARES).tolist():
        won = np.cumsum(treated[:, share == SHARES], axis=1)
        n = A_LOOK * np.arange(1, won.shape[1] + 1)
        # With two arms the Dirichlet-multinomial martingale is the beta-binomial one.
        evidence = before[:, None] + beta_binomial_evidence(won, n - won, share=share, weight=PRIOR_WEIGHT)
        before, most = evidence[:, -1], np.maximum(most, evidence.max(axis=1))
    far = np.abs(np.cumsum(treated - A_LOOK * SHARES, axis=1))
    allowed = stats.norm.isf((1 - LEVEL) / 2) * np.sqrt(np.cumsum(A_LOOK * SHARES * (1 - SHARES)))
    naive = (far > allowed)[:, FEWEST // A_LOOK :].any(axis=1)
    return {"sample_ratio": most > -math.log(1 - LEVEL), "sample_ratio_naive": naive}


def stages() -> Iterator[tuple[float, slice]]:
    """Each share with its events."""
    for share in np.unique(SHARES).tolist():
        looks = np.flatnonzero(share == SHARES)
        yield share, slice(int(looks[0]) * A_LOOK, int(looks[-1] + 1) * A_LOOK)


def at_looks(running: npt.NDArray[Any]) -> FloatArray:
    """Pick what stood at each look."""
    return np.asarray(running[A_LOOK - 1 :: A_LOOK], dtype=np.float64)


if __name__ == "__main__":
    main()
