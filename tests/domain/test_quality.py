"""What the comparison says beside its outcome: estimand, weights, roles, better, and what imputation changed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.quality import compare_quality, compare_segments, explain_quality
from tests.builders import paired_scores, scores_of

MARGIN, LEVEL = 0.03, 0.05


def with_quota(scores: pl.DataFrame, quota: pl.DataFrame, role: str = "edge_case") -> pl.DataFrame:
    renamed = quota.with_columns(pl.format("{}-{}", pl.lit(role), "item_id").alias("item_id"))
    return pl.concat([scores, renamed.with_columns(cluster=pl.col("item_id"), role=pl.lit(role), weight=pl.lit(0.0))])


def test_a_target_that_is_better_is_said_to_be() -> None:
    quality = compare_quality(paired_scores(both=800, lost=26, gained=208, neither=100), margin=MARGIN, level=LEVEL)
    assert (quality.outcome, quality.better) == ("not worse", True)
    assert explain_quality(quality).startswith("better is proven: mean score")
    equal = compare_quality(paired_scores(both=800, lost=20, gained=20, neither=100), margin=MARGIN, level=LEVEL)
    assert (equal.outcome, equal.better) == ("not worse", False)


def test_an_item_weighs_as_many_calls_as_it_stands_for() -> None:
    legacy: list[float | None] = [1.0] * 400
    target: list[float | None] = [0.0 if at < 20 else 1.0 for at in range(400)]
    heavy = compare_quality(scores_of(legacy, target, weight=[10.0] * 20 + [1.0] * 380), margin=MARGIN, level=LEVEL)
    assert heavy.estimate == pytest.approx(-200 / 580, abs=1e-6)
    assert heavy.target_mean == pytest.approx(380 / 580, abs=1e-6)
    assert heavy.outcome == "worse"
    assert heavy.n_effective == pytest.approx(580**2 / (20 * 100 + 380), abs=1e-6)
    assert compare_quality(scores_of(legacy, target), margin=MARGIN, level=LEVEL).n_effective == 400


def test_items_of_a_quota_are_a_segment_and_no_part_of_the_traffic() -> None:
    traffic = paired_scores(both=500, lost=3, gained=3, neither=20)
    failing = paired_scores(both=5, lost=45, gained=0)
    scores = with_quota(traffic, failing)
    assert compare_quality(scores, margin=MARGIN, level=LEVEL) == compare_quality(traffic, margin=MARGIN, level=LEVEL)
    found = {
        (each.stratum, each.value): each for each in compare_segments(scores, ["task"], margin=MARGIN, level=LEVEL)
    }
    assert found["role", "edge_case"].outcome == "worse"
    assert found["role", "edge_case"].n == 50
    assert found["task", "qa"].n == traffic.height
    assert found["task", "qa"].outcome == "not worse"


def test_it_says_what_counting_the_unmeasured_against_the_claim_changed() -> None:
    right: list[float | None] = [1.0] * 500
    some_missing: list[float | None] = [1.0] * 470 + [None] * 30
    quality = compare_quality(scores_of(right, some_missing), margin=MARGIN, level=LEVEL)
    assert quality.outcome == "unproven"
    assert (quality.imputation.items, quality.imputation.changed) == (30, True)
    assert quality.imputation.p_not_worse_measured is not None
    assert quality.imputation.p_not_worse_measured < LEVEL
    assert (
        "30 unmeasured items count as the worst case, which changed the outcome (p of the measured"
        in explain_quality(quality)
    )
    one_missing: list[float | None] = [1.0] * 499 + [None]
    unchanged = compare_quality(scores_of(right, one_missing), margin=MARGIN, level=LEVEL)
    assert (unchanged.outcome, unchanged.imputation.changed) == ("not worse", False)
    assert "1 unmeasured items count as the worst case, which changed nothing" in explain_quality(unchanged)
    assert "unmeasured" not in explain_quality(compare_quality(scores_of(right, right), margin=MARGIN, level=LEVEL))


def test_a_margin_in_score_points_is_narrower_than_that_share_of_one() -> None:
    scores = paired_scores(both=350, lost=14, gained=4, neither=132)
    relative, absolute = (
        compare_quality(scores, margin=0.05, level=LEVEL, kind=kind) for kind in ("relative", "absolute")
    )
    assert relative.margin_points == pytest.approx(0.05 * 364 / 500)
    assert absolute.margin_points == 0.05
    assert absolute.p_not_worse is not None
    assert relative.p_not_worse is not None
    assert absolute.p_not_worse < relative.p_not_worse
    assert "difference of mean scores" in absolute.estimand
    assert "margin 5.00 points" in explain_quality(absolute)


def test_the_smallest_margin_is_the_one_that_equal_arms_pass_at_eighty_percent() -> None:
    quality = compare_quality(paired_scores(both=750, lost=50, gained=50, neither=150), margin=0.05, level=LEVEL)
    # (z(0.05) + z(0.80)) x sqrt(0.1 / 1000) points, over a baseline of 0.8
    assert quality.smallest_margin == pytest.approx(2.486475 * 0.01 / 0.8, abs=1e-6)
    assert quality.design_effect == 1


def test_clusters_enlarge_the_variance_and_the_smallest_margin() -> None:
    rng = np.random.default_rng(1)
    lost = np.repeat(rng.random(100) < 0.1, 5)
    legacy: list[float | None] = [1.0] * 500
    target: list[float | None] = np.where(lost, 0.0, 1.0).tolist()
    clusters = [f"c{at // 5}" for at in range(500)]
    together = compare_quality(scores_of(legacy, target, cluster=clusters), margin=0.05, level=LEVEL)
    alone = compare_quality(scores_of(legacy, target), margin=0.05, level=LEVEL)
    assert together.design_effect == pytest.approx(5, rel=0.03)
    assert together.smallest_margin is not None
    assert alone.smallest_margin is not None
    assert together.smallest_margin / alone.smallest_margin == pytest.approx(5**0.5, rel=0.02)
    assert together.n_effective == 100


def test_no_traffic_is_too_few_items() -> None:
    quality = compare_quality(scores_of([], []), margin=MARGIN, level=LEVEL)
    assert (quality.outcome, quality.n, quality.n_effective) == ("too few items", 0, 0)


def test_few_conversations_are_what_is_missing_however_many_items_they_hold() -> None:
    ones: list[float | None] = [1.0] * 3_000
    quality = compare_quality(
        scores_of(ones, ones, cluster=[f"k{at % 9}" for at in range(3_000)]), margin=MARGIN, level=LEVEL
    )
    assert quality.outcome == "too few items"
    assert quality.n_needed is None
    assert "3000 pairs in 9 clusters; 10 clusters are needed" in explain_quality(quality)


def test_few_items_are_told_with_how_many_would_do() -> None:
    quality = compare_quality(scores_of([1.0] * 3, [1.0] * 3), margin=MARGIN, level=LEVEL)
    assert explain_quality(quality).startswith("too few for any test: 3 pairs; at least 10 are needed")
    assert "in all would prove equal models not worse" in explain_quality(quality)
    missing = compare_quality(scores_of([1.0] * 3, [1.0, 1.0, None]), margin=MARGIN, level=LEVEL)
    assert "only 2 of 3 items were measured" in explain_quality(missing)
