"""Whether verdicts keep what they promise, in simulated migrations: coverage, false GO, power.

    python benchmarks/calibration.py [--quick] [--json] [--seed N]

Every row simulates migrations of a known truth and hands them to the functions that decide in production, beside the
naive way on the same samples: an interval or test that takes the arms for unpaired, the pairs for independent and all
items for equally heavy. The last rows are canaries of two equal arms, looked at every 30 seconds through a whole ramp
(benchmarks/canary_ramp.py). benchmarks/error_rates.py has the worst cases of each single test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.noninferiority import noninferiority
from anven_pipelines.stats.paired import difference_interval
from anven_pipelines.stats.sample_size import pairs_for_margin
from anven_pipelines.stats.simulated_power import PlannedItems
from benchmarks.canary_ramp import count_alarms, difference_boundary, difference_ramp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEVEL = 0.05
COVERAGE = 0.95
MEAN_SIZE = 3  # items in a conversation, geometric
ALIKE = 0.3  # share of conversations whose items all end alike
HEAVY_SHARE, HEAVY = 0.3, 4.0  # items of the heavy stratum, and calls that each of them stands for
LOGGED = 5_000  # conversations of the log that a plan is made from
CANARY = "alarm of an A/A canary"
CANARY_METRICS = ("errors_with_rhythm", "quality_with_rhythm", "p95", "sample_ratio")
PARTS = 10
HEAVY_LOSES = 1.5  # how much more often the heavy stratum loses than the light one


class Truth(NamedTuple):
    """A workload whose arms' means are known.

    Attributes:
        baseline: Share of items that the legacy gets right.
        gained: Share that only the target gets right, over the traffic.
        lost: Share that only the legacy gets right, over the traffic.
        clustered: Items come in conversations.
        weighted: Items stand for different numbers of calls, and the heavy ones lose more often.
    """

    baseline: float
    gained: float
    lost: float
    clustered: bool
    weighted: bool

    @property
    def difference(self) -> float:
        """Mean of the target less that of the legacy, over the traffic."""
        return self.gained - self.lost

    @property
    def structure(self) -> str:
        """Say how items hang together."""
        return f"{'clustered' if self.clustered else 'independent'}{', weighted' if self.weighted else ''}"


class Sample(NamedTuple):
    """One drawn migration, as the estimators take it."""

    target: FloatArray
    legacy: FloatArray
    clusters: IntArray | None
    weights: FloatArray | None


class Row(NamedTuple):
    """One line of the table; every figure is a share."""

    name: str
    case: str
    rates: dict[str, float]
    noise: float


def draw(truth: Truth, n: int, rng: np.random.Generator) -> Sample:
    """Draw about n items; conversations are drawn whole."""
    sizes = rng.geometric(1 / MEAN_SIZE, size=n) if truth.clustered else np.ones(n, dtype=np.int64)
    labels = np.repeat(np.arange(n), sizes)[:n]
    groups = int(labels[-1]) + 1
    alike = np.where(rng.random(groups) < ALIKE, truth.clustered, 0)[labels].astype(bool)
    luck = np.where(alike, rng.random(groups)[labels], rng.random(n))
    heavy = (rng.random(groups) < HEAVY_SHARE)[labels] if truth.weighted else np.zeros(n, dtype=bool)
    weights = np.where(heavy, HEAVY, 1.0)
    # The traffic's share of lost calls stays what it is: heavy items hold `share` of the traffic.
    share = HEAVY_SHARE * HEAVY / (HEAVY_SHARE * HEAVY + 1 - HEAVY_SHARE)
    light_lost = truth.lost / (1 - share + share * HEAVY_LOSES) if truth.weighted else truth.lost
    lost = np.where(heavy, HEAVY_LOSES * light_lost, light_lost)
    ends = np.stack([np.full(n, truth.gained), truth.gained + lost, np.full(n, truth.baseline + truth.gained)])
    kind = (luck[None, :] >= ends).sum(0)  # gained, lost, both right, both wrong
    target, legacy = np.isin(kind, (0, 2)).astype(np.float64), np.isin(kind, (1, 2)).astype(np.float64)
    return Sample(target, legacy, labels if truth.clustered else None, weights if truth.weighted else None)


def naive_interval(sample: Sample) -> tuple[float, float]:
    """Return the interval of two unpaired proportions, z, as a dashboard shows it."""
    means = sample.target.mean(), sample.legacy.mean()
    error = math.sqrt(sum(mean * (1 - mean) for mean in means) / sample.target.size)
    reach = float(stats.norm.isf((1 - COVERAGE) / 2)) * error
    return means[0] - means[1] - reach, means[0] - means[1] + reach


def plain_interval(sample: Sample) -> tuple[float, float]:
    """Return the paired t interval that knows neither conversations nor weights."""
    difference = sample.target - sample.legacy
    error = float(difference.std(ddof=1)) / math.sqrt(difference.size)
    reach = float(stats.t.isf((1 - COVERAGE) / 2, difference.size - 1)) * error
    return float(difference.mean()) - reach, float(difference.mean()) + reach


def coverage_row(case: tuple[int, bool, bool], *, samples: int, seed: int) -> Row:
    """Coverage of the difference interval over base rates and discordance, for one size and structure."""
    n, clustered, weighted = case
    rng = np.random.default_rng([seed, n, clustered, weighted])
    covered: dict[str, list[float]] = {"ours": [], "unpaired z": [], "plain paired t": []}
    for baseline, discordance in itertools.product((0.6, 0.8, 0.95), (0.05, 0.1, 0.2)):
        gained = min(0.4 * discordance, 0.9 * (1 - baseline))
        truth = Truth(baseline, gained, discordance - gained, clustered, weighted)
        hits = np.zeros(3)
        for _ in range(samples):
            sample = draw(truth, n, rng)
            ours = difference_interval(*sample[:2], clusters=sample.clusters, weights=sample.weights, level=COVERAGE)
            for at, (lower, upper) in enumerate(
                ((ours.lower, ours.upper), naive_interval(sample), plain_interval(sample))
            ):
                hits[at] += lower <= truth.difference <= upper
        for name, rate in zip(covered, hits / samples, strict=True):
            covered[name].append(float(rate))
    rates = {
        f"{name} {word}": pick(shares)
        for name, shares in covered.items()
        for word, pick in (("least", min), ("most", max))
    }
    structure = Truth(0, 0, 0, clustered, weighted).structure
    return Row("coverage of 95 %", f"n={n}, {structure}", rates, _noise(COVERAGE, samples))


def false_go_row(case: tuple[int, bool, bool], *, samples: int, seed: int) -> Row:
    """Share of migrations that pass although the target lies exactly on the margin; worst over truths."""
    n, clustered, weighted = case
    rng = np.random.default_rng([seed, 1, n, clustered, weighted])
    worst = np.zeros(3)
    for baseline, margin, gained in itertools.product((0.6, 0.8, 0.95), (0.03, 0.05), (0.01, 0.04)):
        truth = Truth(baseline, gained, gained + margin * baseline, clustered, weighted)
        go = np.zeros(3)
        for _ in range(samples):
            sample = draw(truth, n, rng)
            tested = noninferiority(
                *sample[:2], margin=margin, clusters=sample.clusters, weights=sample.weights, level=LEVEL
            )
            difference = float(sample.target.mean() - sample.legacy.mean())
            allowed = -margin * float(sample.legacy.mean())
            half = (naive_interval(sample)[1] - naive_interval(sample)[0]) / 2
            z = half / float(stats.norm.isf((1 - COVERAGE) / 2)) * float(stats.norm.isf(LEVEL))
            go += [tested.proven, difference - z > allowed, difference > allowed]
        worst = np.maximum(worst, go / samples)
    rates = dict(
        zip(("ours", "unpaired z, legacy taken as known", "estimate within the margin"), worst.tolist(), strict=True)
    )
    structure = Truth(0, 0, 0, clustered, weighted).structure
    return Row("false GO at the margin, worst", f"n={n}, {structure}", rates, _noise(LEVEL, samples))


def power_row(case: tuple[float, float, bool], *, samples: int, seed: int) -> Row:
    """Share of equally good targets that pass with the planned number of items, beside the plan without clusters."""
    margin, discordance, clustered = case
    rng = np.random.default_rng([seed, 2, int(1000 * margin), int(1000 * discordance), clustered])
    independent = pairs_for_margin(
        margin=margin, kind="relative", baseline=0.8, discordance=discordance, level=LEVEL, power=0.8
    )
    if clustered:
        logged = rng.geometric(1 / MEAN_SIZE, size=LOGGED)
        planned = PlannedItems(
            clusters=np.repeat(np.arange(LOGGED), logged),
            weights=np.ones(logged.sum()),
            baseline=0.8,
            discordance=discordance,
            correlation=ALIKE,
            level=LEVEL,
            power=0.8,
        )
        sizes = {"ours": planned.items_for(margin), "planned without clusters": independent}
    else:
        sizes = {"ours": independent}
    truth = Truth(0.8, discordance / 2, discordance / 2, clustered, weighted=False)
    rates = {}
    for name, n in sizes.items():
        passed = 0
        for _ in range(samples):
            sample = draw(truth, n, rng)
            passed += noninferiority(*sample[:2], margin=margin, clusters=sample.clusters, level=LEVEL).proven
        rates[f"{name}, n={n}"] = passed / samples
    structure = truth.structure
    return Row(
        "power, 80 % planned",
        f"margin {margin:g}, discordance {discordance:g}, {structure}",
        rates,
        _noise(0.8, samples),
    )


def canary_row(part: int, *, samples: int, seed: int) -> Row:
    """Share of A/A canaries that any of four metrics alarms, at any look; they share the error rate."""
    rng = np.random.default_rng([seed, 3, part])
    each = LEVEL / len(CANARY_METRICS)
    boundary = difference_boundary(each)
    counts = count_alarms(rng, samples, error_rate=each)
    alarmed = {"ours": 0, "tests made for one look": 0}
    for ramp in range(samples):
        differences = difference_ramp(rng, boundary, error_rate=each)
        found = differences | {name: bool(rows[ramp]) for name, rows in counts.items()}
        alarmed["ours"] += any(found[metric] for metric in CANARY_METRICS)
        alarmed["tests made for one look"] += any(found[f"{metric}_naive"] for metric in CANARY_METRICS)
    rates = {name: count / samples for name, count in alarmed.items()}
    return Row(CANARY, "8,640 looks, errors, quality, p95 and shares", rates, _noise(LEVEL, samples))


def _together(rows: Sequence[Row], *, samples: int) -> Row:
    """Pool equal rows of several processes."""
    rates = {name: float(np.mean([row.rates[name] for row in rows])) for name in rows[0].rates}
    return rows[0]._replace(rates=rates, noise=_noise(LEVEL, samples))


def _noise(share: float, samples: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / samples)


def measure(*, quick: bool, seed: int) -> Iterator[Row]:
    """Measure every row on as many processes as there are cores; the quick run takes smaller samples."""
    structures = list(itertools.product((False, True), (False, True)))
    sizes = (500,) if quick else (300, 500, 1000, 2000)
    cases = [(n, *structure) for n in sizes for structure in structures]
    powers = list(itertools.product((0.05, 0.03) if quick else (0.05, 0.03, 0.02), (0.1, 0.2), (False, True)))
    samples = 100 if quick else 1000
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(coverage_row, samples=samples, seed=seed), cases)
        yield from pool.map(partial(false_go_row, samples=samples, seed=seed), cases)
        yield from pool.map(partial(power_row, samples=2 * samples, seed=seed), powers)
        canaries = pool.map(partial(canary_row, samples=samples // PARTS, seed=seed), range(PARTS))
        yield _together(list(canaries), samples=samples)


def show(rows: Sequence[Row] | Iterator[Row]) -> None:
    """Print the table as it gets known."""
    print("| what | case | measured | 3 Monte Carlo errors |\n|---|---|---|---|")
    for row in rows:
        measured = ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in row.rates.items())
        print(f"| {row.name} | {row.case} | {measured} | {100 * row.noise:.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Coverage, false GO, power and canary alarms of whole verdicts, simulated."
    )
    parser.add_argument("--quick", action="store_true", help="smaller samples, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures on stdout")
    parser.add_argument("--seed", type=int, default=20260101)
    options = parser.parse_args()
    rows = measure(quick=options.quick, seed=options.seed)
    if options.json:
        figures = {f"{row.name}: {row.case}: {name}": rate for row in rows for name, rate in row.rates.items()}
        print(json.dumps({"seed": options.seed, "quick": options.quick, "figures": figures}))
    else:
        show(rows)


if __name__ == "__main__":
    main()
