from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.stats.sample_size import margin_for_pairs, pairs_for_margin
from anven_pipelines.stats.score import evidence_of_counts

PLAN: dict[str, Any] = {"baseline": 0.8, "level": 0.05, "power": 0.8}


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.05, [194, 387, 773]), (0.03, [537, 1074, 2147]), (0.02, [1208, 2416, 4831])],
)
def test_the_published_table_comes_out(margin: float, expected: list[int]) -> None:
    shares = (0.05, 0.1, 0.2)
    relative = [pairs_for_margin(margin=margin, discordance=d, kind="relative", **PLAN) for d in shares]
    absolute = [pairs_for_margin(margin=margin * 0.8, discordance=d, **PLAN) for d in shares]
    assert relative == absolute == expected


def test_a_plan_worked_by_hand() -> None:
    # (1.6449 + 0.8416)^2 x 0.1 / 0.05^2
    assert pairs_for_margin(margin=0.05, discordance=0.1, **PLAN) == math.ceil(6.1826 * 0.1 / 0.0025)


@given(
    st.floats(0.005, 0.3),
    st.floats(0.02, 0.3),
    st.floats(1, 5),
    st.sampled_from(["absolute", "relative"]),
)
def test_margin_and_pairs_are_inverse(margin: float, discordance: float, design_effect: float, kind: Any) -> None:
    shared = PLAN | {"discordance": discordance, "design_effect": design_effect, "kind": kind}
    pairs = pairs_for_margin(margin=margin, **shared)
    assert margin_for_pairs(pairs=pairs, **shared) <= margin * (1 + 1e-9)
    if pairs > 1:
        assert margin_for_pairs(pairs=pairs - 1, **shared) > margin * (1 - 1e-9)


def test_clusters_multiply_the_pairs() -> None:
    alone = pairs_for_margin(margin=0.03, discordance=0.1, **PLAN)
    clustered = pairs_for_margin(margin=0.03, discordance=0.1, design_effect=2, **PLAN)
    assert clustered == pytest.approx(2 * alone, abs=1)


def test_a_planned_sample_passes_about_as_often_as_planned() -> None:
    n = pairs_for_margin(margin=0.03, discordance=0.2, kind="relative", **PLAN)
    both, gained, lost, _ = np.random.default_rng(1).multinomial(n, [0.7, 0.1, 0.1, 0.1], size=20_000).T
    score = evidence_of_counts(both, gained, lost, ratio=0.97).noninferior.score
    assert (stats.norm.sf(score) < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"margin": 0.0}, "margin 0.0"),
        ({"margin": 0.9}, "up to the baseline, 0.8"),
        ({"margin": math.nan}, "margin nan"),
        ({"baseline": 0.0}, "baseline is 0.0"),
        ({"discordance": 0.0}, "discordance is 0.0"),
        ({"level": 0.5}, "level is 0.5"),
        ({"power": 0.05}, "power is 0.05"),
        ({"power": 1.0}, "power is 1.0"),
        ({"design_effect": 0.5}, "design_effect is 0.5"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pairs_for_margin(**({"margin": 0.03, "discordance": 0.1} | PLAN | change))


def test_no_pairs_show_no_margin() -> None:
    with pytest.raises(ValueError, match="0 pairs"):
        margin_for_pairs(pairs=0, discordance=0.1, **PLAN)
