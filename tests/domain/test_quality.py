"""The paired comparison: what proves, what refutes, what never speaks for the target, and what it says beside."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.power import items_for
from anven_pipelines.domain.quality import compare_quality
from anven_pipelines.domain.quality_report import explain_quality
from tests.builders import paired_scores, scores_of

MARGIN, LEVEL = 0.03, 0.05


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "outcome"),
    [
        (45, 29, 0.03, "not worse"),
        (45, 29, 0.02, "unproven"),
        (165, 15, 0.03, "worse"),
        (26, 208, 0.03, "not worse"),
        (0, 0, 0.03, "not worse"),
    ],
)
def test_recorded_counts_give_the_known_outcome(lost: int, gained: int, margin: float, outcome: str) -> None:
    scores = paired_scores(both=1319 - lost - gained - 30, lost=lost, gained=gained, neither=30)
    assert compare_quality(scores, margin=margin, level=LEVEL).outcome == outcome


def test_a_hand_computed_comparison() -> None:
    quality = compare_quality(paired_scores(both=850, lost=20, gained=30, neither=100), margin=MARGIN, level=LEVEL)
    assert quality.legacy_mean == 0.87
    assert quality.target_mean == 0.88
    assert quality.estimate == 0.01
    assert quality.margin_points == pytest.approx(0.0261)
    assert (quality.lost, quality.gained, quality.n, quality.n_measured) == (20, 30, 1000, 1000)
    assert quality.ratio == pytest.approx(0.88 / 0.87, abs=1e-6)
    assert quality.interval is not None
    assert quality.interval[0] < 0.01 < quality.interval[1]


def test_an_undecided_comparison_says_how_many_items_are_missing() -> None:
    quality = compare_quality(paired_scores(both=276, lost=20, gained=20, neither=20), margin=MARGIN, level=LEVEL)
    assert quality.outcome == "unproven"
    assert quality.n_needed is not None
    assert quality.items_still_needed == quality.n_needed - 336
    assert quality.items_still_needed > 0
    assert quality.needed_to_prove == "not worse"


def test_the_interval_of_the_ratio_says_the_same_as_the_test() -> None:
    for lost in range(0, 60, 3):
        quality = compare_quality(paired_scores(both=900, lost=lost, gained=10), margin=MARGIN, level=LEVEL)
        assert quality.ratio_interval is not None
        assert (quality.ratio_interval[0] > 1 - MARGIN) == (quality.outcome == "not worse")
        assert (quality.ratio_interval[1] < 1 - MARGIN) == (quality.outcome == "worse")


def test_unmeasured_target_answers_never_help_the_target() -> None:
    right: list[float | None] = [1.0] * 500
    some_missing: list[float | None] = [1.0] * 470 + [None] * 30
    assert compare_quality(scores_of(right, right), margin=MARGIN, level=LEVEL).outcome == "not worse"
    quality = compare_quality(scores_of(right, some_missing), margin=MARGIN, level=LEVEL)
    assert quality.outcome == "unproven"
    assert quality.n_measured == 470
    assert quality.estimate == 0


def test_unmeasured_legacy_answers_never_help_the_target_either() -> None:
    target: list[float | None] = [*[1.0] * 400, *[0.0] * 100]
    legacy: list[float | None] = [1.0] * 400 + [None] * 100
    assert compare_quality(scores_of(legacy, target), margin=MARGIN, level=LEVEL).outcome == "unproven"


def test_harm_is_proven_in_spite_of_what_is_missing() -> None:
    target: list[float | None] = [0.0] * 300 + [1.0] * 190 + [None] * 10
    assert compare_quality(scores_of([1.0] * 500, target), margin=MARGIN, level=LEVEL).outcome == "worse"


@pytest.mark.parametrize("items", [0, 1, 3])
def test_too_few_items_prove_nothing(items: int) -> None:
    quality = compare_quality(scores_of([1.0] * items, [1.0] * items), margin=MARGIN, level=LEVEL)
    assert quality.outcome == "too few items"
    assert quality.p_not_worse is None
    assert quality.n_needed == items_for(margin=MARGIN, level=LEVEL)
    assert quality.items_still_needed == quality.n_needed - items


def test_more_items_are_no_remedy_for_few_that_were_not_measured() -> None:
    assert compare_quality(scores_of([1.0] * 3, [1.0, 1.0, None]), margin=MARGIN, level=LEVEL).n_needed is None


def test_turns_of_one_conversation_count_as_one_observation() -> None:
    alone = paired_scores(both=270, lost=3, gained=3, neither=24)
    together = alone.with_columns(cluster=pl.Series([f"talk-{at // 30}" for at in range(alone.height)]))
    assert compare_quality(alone, margin=0.05, level=LEVEL).n_clusters == 300
    clustered = compare_quality(together, margin=0.05, level=LEVEL)
    assert clustered.n_clusters == 10
    assert clustered.outcome in {"unproven", "too few items"}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=40, max_size=80), st.data())
def test_losing_a_measurement_never_turns_into_proof(target: list[float | None], data: st.DataObject) -> None:
    legacy: list[float | None] = [1.0] * len(target)
    before = compare_quality(scores_of(legacy, target), margin=0.2, level=LEVEL)
    gone = data.draw(st.sets(st.integers(0, len(target) - 1), min_size=1))
    fewer = [None if at in gone else score for at, score in enumerate(target)]
    after = compare_quality(scores_of(legacy, fewer), margin=0.2, level=LEVEL)
    if before.outcome != "not worse":
        assert after.outcome != "not worse"


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
