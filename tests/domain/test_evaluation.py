"""Both arms side by side, what of them is missing, and the output contract."""

from __future__ import annotations

import polars as pl

from anven_pipelines.domain.evaluation import (
    SCORES,
    Arm,
    arm_of,
    compare_missingness,
    report_contract,
    side_by_side,
)
from tests.builders import answers_of, golden_of, scores_of

LEVEL = 0.05


def test_a_difference_in_missingness_is_found_and_explained() -> None:
    target: list[float | None] = [1.0] * 480 + [None] * 20
    missingness = compare_missingness(scores_of([1.0] * 500, target), level=LEVEL)
    assert missingness.differs
    assert missingness.only_target_unmeasured == 20
    assert missingness.reasons == {"timed out": 20}


def test_equal_missingness_is_no_difference() -> None:
    both: list[float | None] = [1.0] * 480 + [None] * 20
    assert not compare_missingness(scores_of(both, both), level=LEVEL).differs


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
