"""Seconds of the cluster bootstrap beside `scipy.stats.bootstrap`, and whether the two agree, in the same run.

    python benchmarks/cluster_bootstrap.py [--quick] [--json]

Both draw 10,000 BCa resamples of the same graded scores from the same seed. SciPy takes the cluster sums as its sample;
the best of the turns counts, in turns, so that a busy machine harms both alike. `gap` is the largest distance between
two bounds, in score points.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.bootstrap import bootstrap_difference, bootstrap_ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
SEED = 20250101


class Row(NamedTuple):
    """One sample; seconds are those of the best turn."""

    items: int
    clusters: int
    estimand: str
    ours_s: float
    scipy_s: float
    gap: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.scipy_s / self.ours_s


def quotient(numerator: FloatArray, denominator: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(numerator.sum(axis) / denominator.sum(axis))


def compare(items: int, clusters: int, estimand: str, *, resamples: int, turns: int) -> Row:
    """Time both on one sample of beta-distributed scores with a shared part in each cluster."""
    rng = np.random.default_rng(SEED)
    labels = np.arange(items) % clusters
    legacy = np.clip(rng.beta(6, 2, size=items) + 0.1 * rng.normal(size=clusters)[labels], 0, 1)
    target = np.clip(legacy + rng.normal(-0.01, 0.1, size=items), 0, 1)
    weights = rng.uniform(0.5, 2, size=items)
    weights /= weights.max()
    sums = {name: np.bincount(labels, weights=weights * of) for name, of in (("t", target), ("l", legacy))}
    top, bottom = sums["t"], sums["l"]
    ours = bootstrap_ratio
    if estimand == "difference":
        top, bottom, ours = top - bottom, np.bincount(labels, weights=weights), bootstrap_difference
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(turns):
        start = time.perf_counter()
        found = ours(
            target,
            legacy,
            clusters=labels,
            weights=weights,
            level=LEVEL,
            rng=np.random.default_rng(SEED),
            resamples=resamples,
        )
        seconds[0].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = stats.bootstrap(
            (top, bottom),
            quotient,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=200,
            confidence_level=LEVEL,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        seconds[1].append(time.perf_counter() - start)
    gap = max(abs(found.lower - float(theirs.low)), abs(found.upper - float(theirs.high)))
    return Row(items, clusters, estimand, min(seconds[0]), min(seconds[1]), gap)


def measure(*, quick: bool) -> Iterator[Row]:
    """Measure every row; the quick run takes fewer turns."""
    for items, clusters in ((500, 100), (2000, 400), (2000, 2000)):
        for estimand in ("difference", "ratio"):
            yield compare(items, clusters, estimand, resamples=10_000, turns=2 if quick else 5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the cluster bootstrap beside SciPy's.")
    parser.add_argument("--quick", action="store_true", help="fewer turns, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures on stdout")
    options = parser.parse_args()
    rows = measure(quick=options.quick)
    if options.json:
        figures = [row._asdict() | {"ratio": row.ratio} for row in rows]
        print(json.dumps({"quick": options.quick, "seed": SEED, "figures": figures}))
        return
    print("| items | clusters | estimand | ours, s | SciPy, s | times faster | gap |\n|---|---|---|---|---|---|---|")
    for row in rows:
        figures_of_row = f"{row.ours_s:.3f} | {row.scipy_s:.3f} | {row.ratio:.1f} | {row.gap:.1e}"
        print(f"| {row.items:,} | {row.clusters:,} | {row.estimand} | {figures_of_row} |", flush=True)


if __name__ == "__main__":
    main()
