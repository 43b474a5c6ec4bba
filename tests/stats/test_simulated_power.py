"""A plan for conversations against the test that it plans for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anven_pipelines.stats.noninferiority import noninferiority
from anven_pipelines.stats.sample_size import margin_for_pairs
from anven_pipelines.stats.simulated_power import NO_MARGIN, PlannedItems

TRUTH = {"baseline": 0.8, "discordance": 0.1, "level": 0.05, "power": 0.8}


def planned(sizes: list[int], *, correlation: float = 0.3, weights: Any = None, **changes: Any) -> PlannedItems:
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    weighed = np.ones(clusters.size) if weights is None else np.asarray(weights, dtype=np.float64)
    return PlannedItems(clusters=clusters, weights=weighed, correlation=correlation, **{**TRUTH, **changes})


def uneven(count: int) -> list[int]:
    return [int(size) for size in np.random.default_rng(3).geometric(1 / 3, size=count)]


def power_by_the_test_itself(sizes: list[int], *, margin: float, kind: Any, samples: int = 400) -> float:
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    passed = 0
    for _ in range(samples):
        alike = (rng.random(len(sizes)) < 0.3)[clusters]
        luck = np.where(alike, rng.random(len(sizes))[clusters], rng.random(clusters.size))
        gained, lost, both = luck < 0.05, (luck >= 0.05) & (luck < 0.1), (luck >= 0.1) & (luck < 0.85)
        target, legacy = (gained | both).astype(np.float64), (lost | both).astype(np.float64)
        passed += noninferiority(target, legacy, margin=margin, kind=kind, clusters=clusters, level=0.05).proven
    return passed / samples


@pytest.mark.parametrize(("kind", "margin"), [("relative", 0.05), ("absolute", 0.04)])
def test_so_many_items_reach_the_planned_power(kind: Any, margin: float) -> None:
    items = planned(uneven(300), kind=kind).items_for(margin)
    sizes = uneven(items)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), items)) + 1]
    # Three Monte Carlo errors of 400 samples, and what the square-root law costs.
    assert power_by_the_test_itself(sizes, margin=margin, kind=kind) == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize(("size", "least", "most"), [(20, 1_250, 1_650), (100, 6_000, 8_000)])
def test_long_conversations_are_planned_by_their_number(size: int, least: int, most: int) -> None:
    # About 75 conversations reach 80 % in either case: benchmarks/calibration.py's model, margin 10 %, correlation 0.1.
    items = planned([size] * 60, correlation=0.1, discordance=0.2).items_for(0.1)
    assert least < items < most


def test_the_smallest_margin_is_passed_with_the_planned_power() -> None:
    sizes = uneven(300)
    margin = planned(sizes).smallest_margin()
    assert power_by_the_test_itself(sizes, margin=margin, kind="relative") == pytest.approx(0.8, abs=0.08)


def test_independent_items_agree_with_the_formula() -> None:
    margin = planned([1] * 1_000).smallest_margin()
    assert margin == pytest.approx(margin_for_pairs(pairs=1_000, kind="relative", **TRUTH), rel=0.06)


def test_a_plan_can_be_repeated() -> None:
    sizes = uneven(200)
    assert planned(sizes).items_for(0.05) == planned(sizes).items_for(0.05)
    assert planned(sizes).smallest_margin() != planned(sizes, seed=1).smallest_margin()


def test_the_design_effect_is_kish_times_the_clusters() -> None:
    assert planned([1] * 12).design_effect() == 1
    assert planned([1] * 3, weights=[1, 1, 2]).design_effect() == pytest.approx(1.125)
    assert planned([5] * 12).design_effect() == pytest.approx(1 + 4 * 0.3)
    assert planned([5] * 12).typical_cluster() == 5


def test_few_clusters_show_nothing() -> None:
    assert planned([]).smallest_margin() == NO_MARGIN
    assert planned([100] * 9).smallest_margin() == NO_MARGIN
    assert planned([2] * 12, discordance=0.9, baseline=0.5).smallest_margin() == NO_MARGIN


def test_a_legacy_that_is_hardly_ever_wrong_can_be_planned_for() -> None:
    assert 0 < planned(uneven(300), baseline=1.0, discordance=0.2).smallest_margin() < 0.2
