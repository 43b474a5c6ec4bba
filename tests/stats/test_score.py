"""The score tests: closed form, error rates at the margin, and that the imagined pair is what holds them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize, special, stats

from anven_pipelines.stats.score import (
    evidence_of_counts,
    evidence_of_sums,
    restricted_variance,
    restricted_variance_of_counts,
)

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.05


def cells_on_margin(margin: float, baseline: float, gained: float) -> list[float] | None:
    lost = gained + margin * baseline
    cells = [baseline - lost, gained, lost, 1 - baseline - gained]
    return None if min(cells) < -1e-12 else [max(cell, 0) for cell in cells]


def worst_rates(p_values: list[FloatArray], chance: FloatArray) -> list[float]:
    return [float(chance[p < LEVEL].sum()) for p in p_values]


@pytest.mark.parametrize("counts", [(30, 4, 6, 10), (30, 4, 0, 10), (30, 0, 6, 0), (5, 9, 2, 4), (0, 3, 5, 8)])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.97, 1.0, 1.2])
def test_the_closed_form_is_the_numerical_maximum_of_the_likelihood(
    counts: tuple[int, int, int, int], ratio: float
) -> None:
    n, observed = sum(counts), np.array(counts, dtype=np.float64)
    contrast = np.array([1 - ratio, 1, -ratio, 0])
    fixed = np.array([1.0, 0.0])

    def loss(p: FloatArray) -> float:
        return -float(special.xlogy(observed, np.maximum(p, 1e-12)).sum())

    found = optimize.minimize(
        loss,
        x0=np.full(4, 0.25, dtype=np.float64),
        method="SLSQP",
        bounds=optimize.Bounds(1e-10, 1.0),
        constraints=optimize.LinearConstraint(np.stack([np.ones(4), contrast]), fixed, fixed),
        tol=1e-14,
    )
    both, gained, lost = (np.asarray(float(count)) for count in counts[:3])
    variance = restricted_variance_of_counts(both, gained, lost, ratio=ratio)
    assert float(variance) == pytest.approx(n * (contrast**2 @ found.x), rel=2e-3)


def test_a_table_worked_by_hand() -> None:
    # Ratio 1 is McNemar: the variance is the number of discordant pairs.
    evidence = evidence_of_counts(20, 3, 5, ratio=1.0)
    assert float(evidence.noninferior.score) == pytest.approx((3 - 5.5) / math.sqrt(8.5))
    assert float(evidence.inferior.score) == pytest.approx((5 - 4) / math.sqrt(9))


@pytest.mark.parametrize("ratio", [0.8, 0.97, 1.1])
def test_sums_of_single_pairs_are_the_same_test_as_counts(ratio: float) -> None:
    cells = [40, 6, 9, 15]
    target, legacy = np.repeat([1.0, 1.0, 0.0, 0.0], cells), np.repeat([1.0, 0.0, 1.0, 0.0], cells)
    sums = evidence_of_sums(target, legacy, np.ones(70), ratio=ratio)
    for ours, other in zip(evidence_of_counts(*cells[:3], ratio=ratio), sums, strict=True):
        assert float(ours.score) == pytest.approx(float(other.score), rel=1e-9)


def test_values_on_one_side_of_zero_have_no_distribution_at_the_margin() -> None:
    values = np.array([[0.1, 0.2, 0.0], [-0.1, 0.2, 0.0], [0.0, 0.0, 0.0]])
    variance = restricted_variance(values, np.ones(3))
    assert variance[[0, 2]].tolist() == [0, 0]
    # 0.2 / (1 + 0.2 m) = 0.1 / (1 - 0.1 m) at m = 2.5.
    assert variance[1] == pytest.approx(0.01 / 0.75 + 0.04 / 1.5)


@pytest.mark.parametrize("n", [10, 30, 60])
def test_right_or_wrong_answers_err_no_more_often_than_the_level_in_any_table(n: int) -> None:
    both, gained, lost = (cells[np.indices((n + 1,) * 3).sum(0) <= n] for cells in np.indices((n + 1,) * 3))
    logs = special.gammaln(n + 1) - sum(special.gammaln(k + 1) for k in (both, gained, lost, n - both - gained - lost))
    worst = np.zeros(2)
    for margin in (0.02, 0.03, 0.1):
        p_values = [stats.norm.sf(side.score) for side in evidence_of_counts(both, gained, lost, ratio=1 - margin)]
        for baseline, gain in itertools.product((0.5, 0.8, 0.95, 1.0), (0.0, 0.02, 0.1)):
            if cells := cells_on_margin(margin, baseline, gain):
                counts = (both, gained, lost, n - both - gained - lost)
                chance = np.exp(logs + sum(special.xlogy(k, p) for k, p in zip(counts, cells, strict=True)))
                worst = np.maximum(worst, worst_rates(p_values, chance))
    assert (worst <= LEVEL).all()
    assert (worst > 0).all()


@pytest.mark.parametrize("level", [0.01, 0.025, 0.05, 0.1])
def test_rare_losses_err_no_more_often_than_the_level_at_any_margin(level: float) -> None:
    n, lost = 2000, np.arange(151)
    for expected in np.geomspace(0.02, 40, 300):
        chance = stats.binom.pmf(lost, n, expected / n)
        for side in evidence_of_counts(n - lost, 0 * lost, lost, ratio=1 - expected / n):
            assert chance[stats.norm.sf(side.score) < level].sum() <= level


def test_without_the_imagined_pair_rare_losses_would_err_too_often() -> None:
    n, lost = 2000, np.arange(151)
    counts = [values.astype(np.float64) for values in (n - lost, 0 * lost, lost)]
    worst = 0.0
    for expected in np.geomspace(0.02, 40, 300):
        ratio = 1 - expected / n
        variance = restricted_variance_of_counts(*counts, ratio=ratio)
        refuted = (ratio * n - (n - lost)) / np.sqrt(variance) > stats.norm.isf(LEVEL)
        worst = max(worst, float(stats.binom.pmf(lost, n, expected / n)[refuted].sum()))
    assert worst > 0.08


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize(("margin", "baseline", "gain"), [(0.03, 0.8, 0.05), (0.05, 0.9, 0.02), (0.03, 1.0, 0.0)])
def test_large_samples_err_no_more_often_than_the_level(n: int, margin: float, baseline: float, gain: float) -> None:
    samples = 40_000
    cells = cells_on_margin(margin, baseline, gain)
    assert cells
    both, gained, lost, _ = np.random.default_rng(1).multinomial(n, cells, size=samples).T
    bound = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples)
    for side in evidence_of_counts(both, gained, lost, ratio=1 - margin):
        assert (stats.norm.sf(side.score) < LEVEL).mean() <= bound


@pytest.mark.parametrize("n", [30, 100, 500])
@pytest.mark.parametrize("margin", [0.03, 0.1])
def test_graded_scores_with_rare_losses_err_no_more_often_than_the_level(n: int, margin: float) -> None:
    samples, rng = 2000, np.random.default_rng(2)
    legacy = rng.beta(8, 2, size=(samples, n))
    target = legacy * (rng.random((samples, n)) >= margin)
    bound = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples)
    for side in evidence_of_sums(target, legacy, np.ones((samples, n)), ratio=1 - margin):
        assert (stats.t.sf(side.score, n - 1) < LEVEL).mean() <= bound


@pytest.mark.parametrize("groups", [10, 30, 100])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("uneven", [False, True])
def test_clusters_err_no_more_often_than_the_level(groups: int, correlation: float, *, uneven: bool) -> None:
    samples, rng = 1500, np.random.default_rng(3)
    bound = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / samples)
    shape = (samples, groups)
    for margin, baseline, gain in ((0.1, 0.8, 0.1), (0.03, 0.95, 0.0)):
        cells = cells_on_margin(margin, baseline, gain)
        assert cells
        sizes = np.minimum(1 + rng.pareto(1.2, size=shape), 40).astype(np.int64) if uneven else np.full(shape, 5)
        alike = rng.multinomial(1, cells, size=shape) * sizes[..., None]
        shared = rng.random((*shape, 1)) < correlation
        tables = np.where(shared, alike, rng.multinomial(sizes, cells)).astype(np.float64)
        target, legacy = tables[..., 0] + tables[..., 1], tables[..., 0] + tables[..., 2]
        for side in evidence_of_sums(target, legacy, sizes.astype(np.float64), ratio=1 - margin):
            assert (stats.t.sf(side.score, groups - 1) < LEVEL).mean() <= bound


def test_ignoring_clusters_would_err_far_more_often() -> None:
    samples, rng = 1500, np.random.default_rng(4)
    cells = cells_on_margin(0.1, 0.8, 0.1)
    assert cells
    tables = (rng.multinomial(1, cells, size=(samples, 100)) * 5).sum(1)
    both, gained, lost, _ = tables.T
    evidence = evidence_of_counts(both, gained, lost, ratio=0.9)
    assert (stats.norm.sf(evidence.noninferior.score) < LEVEL).mean() > 0.15
