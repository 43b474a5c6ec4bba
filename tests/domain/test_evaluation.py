"""The paired comparison: what proves, what refutes, and what is never held in the target's favour."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.evaluation import (
    SCORES,
    Arm,
    arm_of,
    compare_missingness,
    report_contract,
    side_by_side,
)
from anven_pipelines.domain.power import items_for
from anven_pipelines.domain.quality import compare_quality, compare_segments
from tests.builders import answers_of, golden_of, paired_scores, scores_of

MARGIN = 0.03
LEVEL = 0.05


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


def test_a_difference_in_missingness_is_found_and_explained() -> None:
    target: list[float | None] = [1.0] * 480 + [None] * 20
    missingness = compare_missingness(scores_of([1.0] * 500, target), level=LEVEL)
    assert missingness.differs
    assert missingness.only_target_unmeasured == 20
    assert missingness.reasons == {"timed out": 20}


def test_equal_missingness_is_no_difference() -> None:
    both: list[float | None] = [1.0] * 480 + [None] * 20
    assert not compare_missingness(scores_of(both, both), level=LEVEL).differs


def test_a_harmed_segment_is_found_beneath_a_good_mean() -> None:
    good = paired_scores(both=900, lost=0, gained=60, neither=40)
    bad = paired_scores(both=100, lost=60, gained=0, neither=40)
    scores = pl.concat(
        [
            good.with_columns(task=pl.lit("qa")),
            bad.with_columns(
                task=pl.lit("json"), item_id="bad-" + pl.col("item_id"), cluster="bad-" + pl.col("item_id")
            ),
        ]
    )
    assert compare_quality(scores, margin=MARGIN, level=LEVEL).outcome == "not worse"
    segments = {each.value: each for each in compare_segments(scores, ["task"], margin=MARGIN, level=LEVEL)}
    assert segments["json"].outcome == "worse"
    assert segments["qa"].outcome == "not worse"


def test_many_equal_segments_are_not_called_worse_by_chance() -> None:
    scores = paired_scores(both=980, lost=10, gained=10)
    shuffled = scores.sample(fraction=1, shuffle=True, seed=7)
    labelled = shuffled.with_columns(task=pl.Series([f"task-{at % 20}" for at in range(scores.height)]))
    outcomes = {each.outcome for each in compare_segments(labelled, ["task"], margin=MARGIN, level=LEVEL)}
    assert "worse" not in outcomes


def test_the_contract_is_reported_apart_from_the_score() -> None:
    scores = scores_of(
        [1.0] * 4, [1.0] * 4, legacy_contract=[True, True, False, None], target_contract=[True, False, True, True]
    )
    report = report_contract(scores, declared=True)
    assert report.declared
    assert (report.n_measured, report.broken_by_target_only, report.broken_by_legacy_only) == (3, 1, 1)
    unmeasured = report_contract(scores_of([1.0], [1.0]), declared=True)
    assert (unmeasured.declared, unmeasured.legacy_kept, unmeasured.n_measured) == (True, None, 0)
    assert not report_contract(scores_of([1.0], [1.0]), declared=False).declared


def test_arms_are_set_side_by_side_in_golden_order_whatever_order_they_come_in() -> None:
    golden = golden_of(3)
    answers = answers_of(["a", None, "c"], ttft_ms=[5.0, None, 7.0]).reverse()
    grades = pl.DataFrame(
        {"item_id": ["item-00002", "item-00000"], "score": [1.0, 0.0], "reason": [None, "x"], "grades": ["{}", "{}"]}
    )
    contract = pl.DataFrame(
        {"item_id": ["item-00000"], "kept": [True], "reason": [None]}, schema_overrides={"reason": pl.String}
    )
    arm = Arm(answers, grades, contract)
    scores = side_by_side(golden, arm, arm)
    assert scores.schema == SCORES.schema
    assert scores["item_id"].to_list() == golden["id"].to_list()
    assert scores["target_score"].to_list() == [0.0, None, 1.0]
    assert scores["legacy_ttft_ms"].to_list() == [5.0, None, 7.0]
    assert side_by_side(golden, arm_of(scores, "target"), arm).equals(scores)
