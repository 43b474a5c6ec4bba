"""Segments: harm beneath a good mean is found, chance is not called harm, and what is too small is named."""

from __future__ import annotations

from typing import Any

import polars as pl

from anven_pipelines.domain.quality import compare_quality
from anven_pipelines.domain.segments import compare_segments, judge_segments
from tests.builders import paired_scores

MARGIN, LEVEL = 0.03, 0.05


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


def with_quota(scores: pl.DataFrame, quota: pl.DataFrame, role: str = "edge_case") -> pl.DataFrame:
    renamed = quota.with_columns(pl.format("{}-{}", pl.lit(role), "item_id").alias("item_id"))
    return pl.concat([scores, renamed.with_columns(cluster=pl.col("item_id"), role=pl.lit(role), weight=pl.lit(0.0))])


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


def billing(items: int, **columns: Any) -> pl.DataFrame:
    return paired_scores(both=items, lost=0, gained=0).with_columns(
        application=pl.lit("billing"),
        item_id="bill-" + pl.col("item_id"),
        cluster="bill-" + pl.col("item_id"),
        **{name: pl.lit(value, dtype=pl.Float64) for name, value in columns.items()},
    )


def judged(*parts: pl.DataFrame, strata: tuple[str, ...] = ("application",)) -> tuple[str, str]:
    return judge_segments(compare_segments(pl.concat(parts), strata, margin=MARGIN, level=LEVEL))


def test_a_segment_that_is_too_small_to_compare_is_named_and_blocks_nothing() -> None:
    status, reason = judged(paired_scores(both=1500, lost=0, gained=200), billing(9, target_score=0.0))
    assert status == "met"
    assert reason.endswith("too few items to tell in 1 of 2 segments: application = billing (9)")


def test_a_segment_too_small_to_compare_blocks_nothing_measured_or_not() -> None:
    status, reason = judged(
        paired_scores(both=1500, lost=0, gained=200), billing(9, target_score=None, legacy_score=None)
    )
    assert (status, "application = billing (9)" in reason) == ("met", True)


def test_a_segment_of_which_nothing_was_measured_is_unmeasured() -> None:
    blank = billing(30, target_score=None, legacy_score=None)
    assert judged(paired_scores(both=1500, lost=0, gained=200), blank) == (
        "unmeasured",
        "nothing was measured in both arms in 1 of 2 segments: application = billing (30)",
    )


def test_a_verdict_without_segments_says_so() -> None:
    status, reason = judged(paired_scores(both=1500, lost=0, gained=200), strata=())
    assert (status, reason[:22]) == ("met", "there are no segments:")
