"""Measured coverage of the estimators in `anven_pipelines.stats`, each beside the textbook method.

    python benchmarks/estimators.py [--quick] [--json] [--seed N]

Every interval is for a nominal 95 %. A row is the worst case over its truths; rows called exact add up all tables, the
others are simulated and show the Monte Carlo error that was allowed for.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats import bayesian
from anven_pipelines.stats.agreement import MIN_RATED, Share, corrected_rate, kappa_interval
from anven_pipelines.stats.bootstrap import bootstrap_difference
from anven_pipelines.stats.prediction_powered import MIN_LABELS, Judged, prediction_powered_mean
from anven_pipelines.stats.proportions import unpaired_difference_interval
from anven_pipelines.stats.quantiles import unpaired_quantile_difference
from anven_pipelines.stats.sampling import FAILED_SHARE, PASSED_SHARE, Looked, plan_sample, stratified_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anven_pipelines.stats.interval import Interval

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
Z = 1.959963984540054
# Shares of pairs gained and lost.
DISCORDANT = ((0.01, 0.01), (0.02, 0.05), (0.05, 0.05), (0.02, 0.1), (0.1, 0.2), (0.25, 0.25), (0.1, 0.5))


class Row(NamedTuple):
    """One line of the table; coverages are shares, `noise` is the Monte Carlo error allowed for."""

    name: str
    case: str
    coverage: dict[str, float]
    noise: float = 0.0


def paired_row(n: int) -> Row:
    """Cover the difference of two arms on n right-or-wrong items: credible intervals and the CLT, all tables."""
    tables = np.array([(gained, lost) for gained in range(n + 1) for lost in range(n + 1 - gained)])
    counts, mean = np.c_[tables, n - tables.sum(1)], (tables[:, 0] - tables[:, 1]) / n
    reach = Z * np.sqrt((tables.sum(1) / n - mean**2) / (n - 1))
    bounds = {"CLT": (mean - reach, mean + reach)}
    for prior, name in ((1.0, "credible"), (0.5, "credible, Jeffreys prior")):
        found = [_with_prior(prior, int(gained), int(lost), n) for gained, lost in tables]
        bounds[name] = np.array([one.lower for one in found]), np.array([one.upper for one in found])
    worst = dict.fromkeys(("credible", "credible, Jeffreys prior", "CLT"), 1.0)
    for up, down in DISCORDANT:
        chance = np.asarray(stats.multinomial.pmf(counts, n, [up, down, 1 - up - down]))
        for name, (lower, upper) in bounds.items():
            inside = (lower <= up - down + 1e-12) & (up - down - 1e-12 <= upper)
            worst[name] = min(worst[name], float(chance[inside].sum()))
    return Row("small paired samples, exact", f"n={n}", worst)


def _with_prior(prior: float, gained: int, lost: int, n: int) -> Interval:
    kept, bayesian.PRIOR = bayesian.PRIOR, prior
    try:
        return bayesian.interval_of_table(gained, lost, n, level=LEVEL)
    finally:
        bayesian.PRIOR = kept


def simulated(name: str, case: str, samples: int, trials: Sequence[Callable[[], dict[str, bool] | None]]) -> Row:
    """Take the worst coverage over several truths; a trial that is refused is left out."""
    worst: dict[str, float] = {}
    for trial in trials:
        covered = [found for found in (trial() for _ in range(samples)) if found is not None]
        for method in covered[0]:
            worst[method] = min(worst.get(method, 1.0), sum(found[method] for found in covered) / len(covered))
    return Row(name, case, worst, 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples))


def powered(n: int, accuracy: float, rng: np.random.Generator) -> dict[str, bool]:
    """One sample of n labels and 1,000 judge scores of items of which 80 % are right."""
    human = (rng.random(n + 1000) < 0.8).astype(float)
    judge = np.where(rng.random(n + 1000) < accuracy, human, 1 - human)
    arm = Judged(human[:n], judge[:n], judge[n:])
    found = prediction_powered_mean(arm, level=LEVEL)
    published = (found.upper - found.estimate) * Z / (stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
    mean, error = judge.mean(), judge.std() / math.sqrt(n + 1000)
    return {
        "ours": found.lower <= 0.8 <= found.upper,
        "z in place of t": abs(found.estimate - 0.8) <= published,
        "judge alone": bool(abs(float(mean) - 0.8) <= Z * float(error)),
    }


def rated(n: int, shares: tuple[float, ...], rng: np.random.Generator) -> dict[str, bool] | None:
    """One table of n items that two raters put in two categories."""
    table = np.array(shares).reshape(2, 2)
    expected = float(table.sum(0) @ table.sum(1))
    truth = (float(table.trace()) - expected) / (1 - expected)
    try:
        found = kappa_interval(rng.multinomial(n, shares).reshape(2, 2), level=LEVEL)
    except TooFewPairs:
        return None
    return {"ours": found.lower <= truth <= found.upper}


def corrected(truth: float, known: int, rng: np.random.Generator) -> dict[str, bool]:
    """One rate measured on 500 items by a rater right in 85 % and 90 %, which `known` items each have shown."""
    called = int(rng.binomial(500, truth * 0.85 + (1 - truth) * 0.1))
    hits, right = int(rng.binomial(known, 0.85)), int(rng.binomial(known, 0.9))
    found = corrected_rate(
        Share(called, 500), sensitivity=Share(hits, known), specificity=Share(right, known), level=LEVEL
    )
    rate = called / 500
    return {
        "ours": found.lower <= truth <= found.upper,
        "measured rate": abs(rate - truth) <= Z * math.sqrt(rate * (1 - rate) / 500),
    }


def sampled(missed: float, false_alarm: float, rng: np.random.Generator) -> dict[str, bool]:
    """One designed sample of 400 automated failures and 3,600 passes."""
    failures = {"failed": round(400 * (1 - false_alarm)), "passed": round(3600 * missed)}
    plan = plan_sample({"failed": 400, "passed": 3600}, shares={"failed": FAILED_SHARE, "passed": PASSED_SHARE})
    looked = [
        Looked(
            stratum.size,
            stratum.drawn,
            int(rng.hypergeometric(failures[stratum.name], stratum.size - failures[stratum.name], stratum.drawn)),
        )
        for stratum in plan
    ]
    found, truth = stratified_rate(looked, level=LEVEL), sum(failures.values()) / 4000
    shares = np.array([one.size for one in looked]) / 4000
    rates, drawn = (np.array([getattr(one, of) for one in looked]) for of in ("failures", "drawn"))
    rates = rates / drawn
    error = math.sqrt(float((shares**2 * (1 - drawn / (shares * 4000)) * rates * (1 - rates) / (drawn - 1)).sum()))
    plain = sum(one.failures for one in looked) / drawn.sum()
    return {
        "ours": found.lower <= truth <= found.upper,
        "Wald, stratified": abs(found.estimate - truth) <= Z * error,
        "unweighted": bool(abs(plain - truth) <= Z * math.sqrt(plain * (1 - plain) / drawn.sum())),
    }


def unpaired(n: int, target: float, legacy: float, rng: np.random.Generator) -> dict[str, bool]:
    """One pair of counts of n independent items in each arm."""
    ours, theirs = int(rng.binomial(n, target)), int(rng.binomial(n, legacy))
    found = unpaired_difference_interval(ours, n, theirs, n, level=LEVEL)
    a, b, truth = ours / n, theirs / n, target - legacy
    wald = Z * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
    return {"ours": found.lower <= truth <= found.upper, "Wald": abs(a - b - truth) <= wald}


def slower(n: int, quantile: float, rng: np.random.Generator) -> dict[str, bool]:
    """One pair of arms with n log-normal latencies each, the target 10 % slower."""
    target, legacy = np.exp(0.1 + 0.5 * rng.normal(size=n)), np.exp(0.5 * rng.normal(size=n))
    found = unpaired_quantile_difference(target, legacy, quantile=quantile, level=LEVEL, rng=rng, resamples=1000)
    truth = (math.exp(0.1) - 1) * math.exp(0.5 * float(stats.norm.ppf(quantile)))
    return {"ours": found.lower <= truth <= found.upper}


def clustered(clusters: int, rng: np.random.Generator) -> dict[str, bool]:
    """One weighted sample of conversations of one to five turns, the difference shared within each."""
    sizes = rng.integers(1, 6, size=clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    legacy = rng.uniform(0.3, 0.7, size=labels.size)
    target = legacy + (rng.beta(1, 4, size=clusters)[labels] - 0.2) * 0.35
    weights = rng.choice([1.0, 3.0], size=clusters)[labels]
    bootstrap = functools.partial(
        bootstrap_difference, target, legacy, weights=weights, level=LEVEL, rng=rng, resamples=1000
    )
    found, alone = bootstrap(clusters=labels), bootstrap()
    return {"ours": found.lower <= 0 <= found.upper, "ignoring clusters": alone.lower <= 0 <= alone.upper}


def measure(*, quick: bool, seed: int) -> Iterator[Row]:
    """Measure every row; the quick run takes smaller samples of the same cases."""
    rng = np.random.default_rng(seed)
    samples = 300 if quick else 2000
    for n in (10, 20) if quick else (10, 20, 30, 50, 100):
        yield paired_row(n)
    for n in (MIN_LABELS, 50, 100):
        trials = [functools.partial(powered, n, a, rng) for a in (0.6, 0.8, 0.95, 0.99)]
        yield simulated("prediction-powered mean", f"{n} labels", samples, trials)
    for n in (MIN_RATED, 50, 100):
        tables = ((0.55, 0.08, 0.07, 0.30), (0.4, 0.1, 0.1, 0.4), (0.75, 0.05, 0.05, 0.15), (0.6, 0.01, 0.01, 0.38))
        yield simulated("kappa", f"{n} items", samples, [functools.partial(rated, n, t, rng) for t in tables])
    for known in (20, 50, 100):
        trials = [functools.partial(corrected, t, known, rng) for t in (0.02, 0.1, 0.3, 0.7)]
        yield simulated("corrected rate", f"{known} known items of each kind", samples, trials)
    trials = [functools.partial(sampled, m, f, rng) for m in (0, 0.001, 0.01, 0.03, 0.1) for f in (0, 0.2, 0.5)]
    yield simulated("designed sample", "10 % of 400, 2 % of 3,600", samples, trials)
    for n in (30, 100, 500):
        trials = [functools.partial(unpaired, n, *a, rng) for a in ((0.8, 0.8), (0.95, 0.97), (0.99, 0.99), (0.5, 0.7))]
        yield simulated("unpaired proportions", f"n={n}", samples, trials)
    for quantile, n in ((0.5, 100), (0.95, 100), (0.95, 400), (0.99, 500), (0.99, 2000)):
        yield simulated(
            "unpaired quantile", f"p{100 * quantile:g}, n={n}", samples, [functools.partial(slower, n, quantile, rng)]
        )
    for clusters in (10, 30, 100):
        trials = [functools.partial(clustered, clusters, rng)]
        yield simulated("weighted cluster bootstrap", f"{clusters} clusters", samples // 2, trials)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the coverage of the estimators.")
    parser.add_argument("--quick", action="store_true", help="smaller samples, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures on stdout")
    parser.add_argument("--seed", type=int, default=20250101)
    options = parser.parse_args()
    rows = measure(quick=options.quick, seed=options.seed)
    if options.json:
        figures = {f"{row.name}: {row.case}: {name}": rate for row in rows for name, rate in row.coverage.items()}
        print(json.dumps({"seed": options.seed, "quick": options.quick, "figures": figures}))
        return
    print("| estimator | case | worst coverage | 3 Monte Carlo errors |\n|---|---|---|---|")
    for row in rows:
        measured = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in row.coverage.items())
        noise = f"{100 * row.noise:.2f} %" if row.noise else "exact"
        print(f"| {row.name} | {row.case} | {measured} | {noise} |", flush=True)


if __name__ == "__main__":
    main()
