"""Measured error rates of every decision and interval in `anven_pipelines.stats`.

    python benchmarks/error_rates.py [--quick] [--quantiles] [--json] [--seed N]

Each row is the worst case over a grid of truths that lie exactly on the margin, so each false verdict is an error.
Rows called exact add up all possible tables; the others are simulated. Beside ours stands the plain test (paired t on
z, or the same ignoring clusters) on the same samples, or the level where there is none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.cluster_t import guarded_t_bound
from anven_pipelines.stats.paired import difference_interval
from anven_pipelines.stats.quantiles import paired_quantile_difference
from anven_pipelines.stats.sample_size import pairs_for_margin
from anven_pipelines.stats.score import MarginEvidence, evidence_of_counts, evidence_of_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEVEL = 0.05
MARGINS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
BASELINES = (0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
GAINED = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SIMULATED = 3.0  # Monte Carlo standard errors that are shown beside a simulated worst case


class Row(NamedTuple):
    """One line of the table; rates and coverages are shares, `noise` is the Monte Carlo error allowed for."""

    name: str
    case: str
    rates: dict[str, float]
    noise: float = 0.0


class Cells(NamedTuple):
    """Probabilities of the four kinds of pair: both right, gained, lost, both wrong."""

    both: float
    gained: float
    lost: float
    neither: float


def cells_on_margin(margin: float, baseline: float, gained: float) -> Cells | None:
    """Put the truth exactly on a relative margin; None where no such table exists."""
    lost = gained + margin * baseline
    cells = Cells(baseline - lost, gained, lost, 1 - baseline - gained)
    return None if min(cells) < -1e-12 else Cells(*(max(cell, 0.0) for cell in cells))


def truths() -> Iterator[tuple[float, Cells]]:
    """List every margin with every table that lies on it."""
    for margin, baseline, gained in itertools.product(MARGINS, BASELINES, GAINED):
        if cells := cells_on_margin(margin, baseline, gained):
            yield margin, cells


def all_tables(n: int) -> tuple[IntArray, IntArray, IntArray]:
    """Count every table of n pairs: both right, gained, lost."""
    both, gained, lost = np.meshgrid(*[np.arange(n + 1)] * 3, indexing="ij")
    possible = both + gained + lost <= n
    return both[possible], gained[possible], lost[possible]


def chances(tables: tuple[IntArray, IntArray, IntArray], n: int, cells: Cells) -> FloatArray:
    """Multinomial probability of each table."""
    counts = (*tables, n - sum(tables))
    logs = special.gammaln(n + 1) - sum(special.gammaln(count + 1) for count in counts)
    return np.asarray(np.exp(logs + sum(special.xlogy(k, p) for k, p in zip(counts, cells, strict=True))))


def naive_decisions(totals: FloatArray, sizes: FloatArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Decide by the textbook t test on z, cluster-robust where sizes exceed 1; zero variance is a sure verdict."""
    mean = totals.sum(-1) / sizes.sum(-1)
    groups = totals.shape[-1]
    squares = ((totals - mean[..., None] * sizes) ** 2).sum(-1) * groups / (groups - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = totals.sum(-1) / np.sqrt(squares)
    return stats.t.sf(t, groups - 1) < LEVEL, stats.t.cdf(t, groups - 1) < LEVEL


def exact_rows(n: int) -> Iterator[Row]:
    """Error rates for independent right or wrong answers, all tables added up."""
    tables = all_tables(n)
    levels = (0.01, 0.025, 0.05, 0.1)
    worst: dict[float, list[float]] = {level: [0.0, 0.0] for level in levels}
    naive = [0.0, 0.0]
    for margin in MARGINS:
        evidence = evidence_of_counts(*tables, ratio=1 - margin)
        p_values = [stats.norm.sf(side.score) for side in evidence]
        z_mean, z_squares = _z_moments(tables, n, margin)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = z_mean / np.sqrt((z_squares - z_mean**2) / (n - 1))
        plain = [stats.t.sf(t, n - 1) < LEVEL, stats.t.cdf(t, n - 1) < LEVEL]
        for _, cells in (truth for truth in truths() if truth[0] == margin):
            chance = chances(tables, n, cells)
            for side in (0, 1):
                naive[side] = max(naive[side], float(chance[plain[side]].sum()))
                for level in levels:
                    worst[level][side] = max(worst[level][side], float(chance[p_values[side] < level].sum()))
    for level in levels:
        rates = {"false GO": worst[level][0], "false NO-GO": worst[level][1]}
        beside = {"plain GO": naive[0], "plain NO-GO": naive[1]} if level == LEVEL else {}
        yield Row("right or wrong, exact", f"n={n}, level {level:g}", rates | beside)


def _z_moments(tables: tuple[IntArray, IntArray, IntArray], n: int, margin: float) -> tuple[FloatArray, FloatArray]:
    both, gained, lost = tables
    mean = np.asarray((margin * both + gained - (1 - margin) * lost) / n, dtype=np.float64)
    squares = (margin**2 * both + gained + (1 - margin) ** 2 * lost) / n
    return mean, np.asarray(squares, dtype=np.float64)


def rare_loss_rows() -> Iterator[Row]:
    """Worst case over a fine sweep of the margin where the legacy is always right and nothing is gained."""
    n, lost = 2000, np.arange(201)
    for level in (0.01, 0.025, 0.05, 0.1):
        worst = [0.0, 0.0]
        for expected in np.geomspace(0.02, 60, 600):
            chance = stats.binom.pmf(lost, n, expected / n)
            evidence = evidence_of_counts(n - lost, 0 * lost, lost, ratio=1 - expected / n)
            for side in (0, 1):
                worst[side] = max(worst[side], float(chance[stats.norm.sf(evidence[side].score) < level].sum()))
        yield Row("rare losses, exact", f"n={n}, level {level:g}", {"false GO": worst[0], "false NO-GO": worst[1]})


def smallest_rows() -> Iterator[Row]:
    """p-value with which a target that always fails is refuted: what a very small sample can say at most."""
    for n in (5, 8, 10, 20):
        pairs = evidence_of_counts(0, 0, n, ratio=0.97).inferior.score
        clusters = evidence_of_sums(np.zeros(n), np.full(n, 3.0), np.full(n, 3.0), ratio=0.97).inferior.score
        named = {"p of pairs": float(stats.norm.sf(pairs)), "p of clusters": float(stats.t.sf(clusters, n - 1))}
        yield Row("a target that always fails, exact", f"{n} pairs or equal clusters", named)


def simulated_row(n: int, samples: int, rng: np.random.Generator) -> Row:
    """Error rates for independent right or wrong answers where there are too many tables to list."""
    worst = [0.0, 0.0]
    for margin, cells in truths():
        both, gained, lost, _ = rng.multinomial(n, cells, size=samples).T
        for side, evidence in enumerate(evidence_of_counts(both, gained, lost, ratio=1 - margin)):
            worst[side] = max(worst[side], float((stats.norm.sf(evidence.score) < LEVEL).mean()))
    return Row(
        "right or wrong", f"n={n}, level {LEVEL}", {"false GO": worst[0], "false NO-GO": worst[1]}, _noise(samples)
    )


def _rare(margin: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    return np.where(rng.random(shape) < margin, 0.0, 1.0), np.ones(shape)


def _rare_graded(margin: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    legacy = rng.beta(8, 2, size=shape)
    return legacy * (rng.random(shape) >= margin), legacy


def _quarters(margin: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    legacy = rng.integers(0, 5, size=shape) / 4
    return legacy * (1 - (rng.random(shape) < 2 * margin) * 0.5), legacy


def _unrelated(margin: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    return (1 - margin) * rng.beta(4, 1, size=shape), rng.beta(4, 1, size=shape)


GRADED: dict[str, Callable[[float, tuple[int, int], np.random.Generator], tuple[FloatArray, FloatArray]]] = {
    "rare whole losses": _rare,
    "rare losses of graded scores": _rare_graded,
    "quarter steps": _quarters,
    "unrelated arms": _unrelated,
}


def decide(evidence: MarginEvidence, groups: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Turn evidence of sums into verdicts, as `noninferiority` does."""
    go, no_go = (stats.t.sf(side.score, groups - 1) < LEVEL for side in evidence)
    return go, no_go


def graded_row(n: int, samples: int, rng: np.random.Generator) -> Row:
    """Error rates for graded scores of independent items."""
    rates = np.zeros(4)
    for draw, margin in itertools.product(GRADED.values(), (0.01, 0.03, 0.1)):
        target, legacy = draw(margin, (samples, n), rng)
        sizes = np.ones((samples, n))
        ours = decide(evidence_of_sums(target, legacy, sizes, ratio=1 - margin), n)
        plain = naive_decisions(target - (1 - margin) * legacy, sizes)
        rates = np.maximum(rates, [verdict.mean() for verdict in (*ours, *plain)])
    return Row("graded scores", f"n={n}, level {LEVEL}", _named(rates), _noise(samples))


def cluster_sizes(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> IntArray:
    """Draw sizes of conversations: all 5; geometric of mean 3; or a heavy tail from 1 to 60."""
    if kind == "equal":
        return np.full(shape, 5)
    if kind == "geometric":
        return np.asarray(rng.geometric(1 / 3, size=shape), dtype=np.int64)
    return np.asarray(np.minimum(1 + np.floor(rng.pareto(1.2, size=shape)), 60), dtype=np.int64)


def draw_clusters(
    cells: Cells, kind: str, correlation: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Draw tables by cluster, shape (samples, clusters, 4), and sizes: a share of clusters shares one outcome."""
    sizes = cluster_sizes(kind, shape, rng)
    shared = rng.random(shape) < correlation
    alike = rng.multinomial(1, cells, size=shape) * sizes[..., None]
    return np.where(shared[..., None], alike, rng.multinomial(sizes, cells)), sizes


CLUSTERED_TRUTHS = [
    (margin, cells)
    for margin, baseline, gained in itertools.product((0.03, 0.1), (0.5, 0.8, 0.95), (0.0, 0.02, 0.1))
    if (cells := cells_on_margin(margin, baseline, gained))
]


def clustered_row(groups: int, kind: str, samples: int, rng: np.random.Generator) -> Row:
    """Error rates for right or wrong answers in clusters, over correlations 0, 0.3 and 1."""
    rates = np.zeros(6)
    for (margin, cells), correlation in itertools.product(CLUSTERED_TRUTHS, (0.0, 0.3, 1.0)):
        tables, counts = draw_clusters(cells, kind, correlation, (samples, groups), rng)
        sizes = counts.astype(np.float64)
        target, legacy = (tables[..., k].astype(np.float64) + tables[..., 0] for k in (1, 2))
        ours = decide(evidence_of_sums(target, legacy, sizes, ratio=1 - margin), groups)
        plain = naive_decisions(target - (1 - margin) * legacy, sizes)
        summed = tables.sum(1)
        ignoring = (stats.norm.sf(side.score) < LEVEL for side in evidence_of_counts(*summed.T[:3], ratio=1 - margin))
        rates = np.maximum(rates, [verdict.mean() for verdict in (*ours, *plain, *ignoring)])
    named = _named(rates[:4]) | {"ignoring clusters GO": rates[4], "ignoring clusters NO-GO": rates[5]}
    return Row("clusters", f"{groups} {kind}, level {LEVEL}", named, _noise(samples))


def coverage_rows(samples: int, rng: np.random.Generator, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Coverage of the 95 % difference interval: exact for counts, simulated for clusters."""
    for n in sizes:
        gained, lost = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
        possible = gained + lost <= n
        gained, lost = gained[possible], lost[possible]
        bounds = np.array([_tango_bounds(int(g), int(k), n) for g, k in zip(gained, lost, strict=True)])
        covered = []
        for p_gained, p_lost in itertools.product((0.01, 0.02, 0.05, 0.1, 0.2), repeat=2):
            chance = chances((0 * gained, gained, lost), n, Cells(1.0, p_gained, p_lost, 1 - p_gained - p_lost))
            truth = p_gained - p_lost
            covered.append(float(chance[(bounds[:, 0] <= truth) & (truth <= bounds[:, 1])].sum()))
        named = {"worst coverage": min(covered), "mean coverage": float(np.mean(covered))}
        yield Row("Tango interval, exact", f"n={n}, level 0.95", named)
    for groups in (5, 10, 20, 50):
        yield _cluster_coverage(groups, samples, rng)


def _tango_bounds(gained: int, lost: int, n: int) -> tuple[float, float]:
    target = np.zeros(n)
    legacy = np.zeros(n)
    target[:gained] = 1
    legacy[gained : gained + lost] = 1
    interval = difference_interval(target, legacy, level=0.95)
    return interval.lower, interval.upper


def _cluster_coverage(groups: int, samples: int, rng: np.random.Generator) -> Row:
    """Cover the truth by t bounds with an imagined cluster and by plain ones; 5 clusters are below the limit."""
    covered, plain = [], []
    for kind, correlation, (margin, cells) in itertools.product(
        ("equal", "geometric"), (0.0, 0.3, 1.0), CLUSTERED_TRUTHS[::3]
    ):
        del margin
        tables, sizes = draw_clusters(cells, kind, correlation, (samples, groups), rng)
        sums, truth = (tables[..., 1] - tables[..., 2]).astype(np.float64), cells.gained - cells.lost
        counts = sizes.astype(np.float64)
        guarded = [guarded_t_bound(sums, counts, tail=0.025, side=side) for side in (-1, 1)]
        covered.append(float(((guarded[0] <= truth) & (truth <= guarded[1])).mean()))
        bare = [plain_t_bound(sums, counts, side=side) for side in (-1, 1)]
        plain.append(float(((bare[0] <= truth) & (truth <= bare[1])).mean()))
    named = {"worst coverage": min(covered), "mean coverage": float(np.mean(covered)), "plain worst": min(plain)}
    return Row("cluster t interval", f"{groups} clusters, level 0.95", named, 3 * math.sqrt(0.95 * 0.05 / samples))


def plain_t_bound(sums: FloatArray, sizes: FloatArray, *, side: int) -> FloatArray:
    """Bound one side as the textbook does, without an imagined cluster."""
    groups = sums.shape[-1]
    mean = sums.sum(-1) / sizes.sum(-1)
    squares = ((sums - mean[:, None] * sizes) ** 2).sum(-1)
    error = np.sqrt(groups / (groups - 1) * squares) / sizes.sum(-1)
    return np.asarray(mean + side * stats.t.isf(0.025, groups - 1) * error)


def quantile_row(n: int, samples: int, rng: np.random.Generator) -> Row:
    """Miss rates of the 90 % interval for a p95 difference of two correlated log-normal latencies."""
    misses = np.zeros(2)
    truth = (math.exp(0.1) - 1) * math.exp(0.5 * float(stats.norm.ppf(0.95)))
    for _ in range(samples):
        shared, own = rng.normal(size=(2, n)), rng.normal(size=n)
        legacy = np.exp(0.5 * shared[0])
        target = np.exp(0.1 + 0.5 * (0.6 * shared[0] + 0.8 * own))
        interval = paired_quantile_difference(target, legacy, quantile=0.95, level=0.9, rng=rng, resamples=500)
        misses += [interval.upper < truth, interval.lower > truth]
    below, above = misses / samples
    named = {"upper bound too low": float(below), "lower bound too high": float(above)}
    return Row("p95 bootstrap", f"n={n}, level 0.90", named, _noise(samples))


def allowance_row(groups: int, turns: int, samples: int, rng: np.random.Generator, *, weighted: bool = False) -> Row:
    """Error rates of the speed criterion in conversations, the target exactly on the allowed increase of p95.

    The worst of three shapes (as spread as the legacy and half alike, wider and unrelated, narrower and alike) and of
    three correlations within a conversation. Weighted: three in ten items stand for 4 calls each.
    """
    labels, worst = np.repeat(np.arange(groups), turns), np.zeros(5)
    shapes, correlations = ((0.5, 0.6), (0.8, 0.0), (0.3, 0.9)), (0.0, 0.5, 0.9) if turns > 1 else (0.0,)
    at = float(stats.norm.ppf(0.95))
    legacy_p95 = 800 * math.exp(0.5 * at)
    allowed = max(0.2 * legacy_p95, 300.0)
    for (spread, alike), correlation in itertools.product(shapes, correlations):
        counts = np.zeros(5)
        for _ in range(samples):
            shared, own = rng.normal(size=(2, groups))[:, labels], rng.normal(size=(2, labels.size))
            first, second = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
            legacy = 800 * np.exp(0.5 * first)
            latent = alike * first + math.sqrt(1 - alike**2) * second
            target = (legacy_p95 + allowed) * np.exp(spread * (latent - at))
            weights = np.where(rng.random(labels.size) < 0.3, 4.0, 1.0) if weighted else None
            plain = paired_quantile_difference(target, legacy, quantile=0.95, level=0.9, rng=rng, resamples=200)
            seen = max(0.2 * float(np.quantile(legacy, 0.95)), 300.0)
            counts[2:4] += [plain.upper <= seen, plain.lower > seen]
            try:
                ours = paired_quantile_difference(
                    target,
                    legacy,
                    quantile=0.95,
                    allowed_share=0.2,
                    allowed=300.0,
                    clusters=labels,
                    weights=weights,
                    level=0.9,
                    rng=rng,
                    resamples=200,
                )
            except TooFewPairs:
                counts[4] += 1
                continue
            counts[:2] += [ours.upper <= 0, ours.lower > 0]
        worst = np.maximum(worst, counts / samples)
    names = ("false met", "false not met", "ignoring clusters met", "ignoring clusters not met", "refused at most")
    case = f"{groups} of {turns}{', weighted' if weighted else ''}, level {LEVEL}"
    return Row("p95 allowance", case, dict(zip(names, map(float, worst), strict=True)), _noise(samples))


def allowance_rows(samples: int, rng: np.random.Generator) -> Iterator[Row]:
    """Rows of the speed criterion, from one item a conversation to ten."""
    for groups, turns, weighted in ((200, 1, False), (200, 1, True), (30, 10, False), (60, 5, False)):
        yield allowance_row(groups, turns, samples, rng, weighted=weighted)


def power_rows(samples: int, rng: np.random.Generator) -> Iterator[Row]:
    """Power that the planned number of pairs reaches with equally good arms: 80 % were planned."""
    for margin, discordance in itertools.product((0.05, 0.03, 0.02), (0.05, 0.1, 0.2)):
        n = pairs_for_margin(
            margin=margin, baseline=0.8, discordance=discordance, level=LEVEL, power=0.8, kind="relative"
        )
        half = discordance / 2
        both, gained, lost, _ = rng.multinomial(n, Cells(0.8 - half, half, half, 0.2 - half), size=samples).T
        score = evidence_of_counts(both, gained, lost, ratio=1 - margin).noninferior.score
        power = float((stats.norm.sf(score) < LEVEL).mean())
        noise = 3 * math.sqrt(0.8 * 0.2 / samples)
        yield Row("power of the plan", f"margin {margin}, discordance {discordance}, n={n}", {"power": power}, noise)


def _named(rates: FloatArray) -> dict[str, float]:
    names = ("false GO", "false NO-GO", "plain GO", "plain NO-GO")
    return dict(zip(names, map(float, rates), strict=True))


def _noise(samples: int) -> float:
    return SIMULATED * math.sqrt(LEVEL * (1 - LEVEL) / samples)


def measure(*, quick: bool, seed: int) -> Iterator[Row]:
    """Measure every row; the quick run takes smaller samples of the same cases."""
    rng = np.random.default_rng(seed)
    samples = 500 if quick else 4000
    for n in (30,) if quick else (30, 100):
        yield from exact_rows(n)
    yield from rare_loss_rows()
    yield from smallest_rows()
    for n in (500, 2000):
        yield simulated_row(n, 4 * samples, rng)
    for n in (30, 100, 500):
        yield graded_row(n, samples, rng)
    for groups, kind in itertools.product(
        (10, 30, 100) if quick else (10, 30, 100, 300), ("equal", "geometric", "heavy")
    ):
        yield clustered_row(groups, kind, samples // (2 if groups < 300 else 4), rng)
    yield from coverage_rows(samples, rng, (30,) if quick else (30, 100))
    yield from power_rows(20 * samples, rng)
    yield from quantile_rows(quick=quick, seed=seed)


def quantile_rows(*, quick: bool, seed: int) -> Iterator[Row]:
    """Measure the rows of quantiles: they have a generator of their own, and can be run without the rest."""
    rng = np.random.default_rng(seed)
    for n in (100, 200, 400, 1000):
        yield quantile_row(n, 100 if quick else 1000, rng)
    yield from allowance_rows(50 if quick else 600, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the error rates of the statistics.")
    parser.add_argument("--quick", action="store_true", help="smaller samples, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures on stdout")
    parser.add_argument("--seed", type=int, default=20250101)
    parser.add_argument(
        "--quantiles", action="store_true", help="only the rows of quantiles, which have a generator of their own"
    )
    options = parser.parse_args()
    rows = measure(quick=options.quick, seed=options.seed)
    if options.quantiles:
        rows = quantile_rows(quick=options.quick, seed=options.seed)
    if options.json:
        figures = {f"{row.name}: {row.case}: {name}": rate for row in rows for name, rate in row.rates.items()}
        print(json.dumps({"seed": options.seed, "quick": options.quick, "figures": figures}))
        return
    print("| method | case | measured | 3 Monte Carlo errors |\n|---|---|---|---|")
    for row in rows:
        measured = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in row.rates.items())
        noise = f"{100 * row.noise:.2f} %" if row.noise else "exact"
        print(f"| {row.name} | {row.case} | {measured} | {noise} |", flush=True)


if __name__ == "__main__":
    main()
