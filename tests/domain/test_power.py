"""The plan says what is needed, the sealed items what they can certify, and an impossible margin is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.power import (
    PLANNED_BASELINE,
    POWER_PLAN,
    Baseline,
    certified_margin,
    design_effect,
    items_for,
    items_like,
    least_items,
    measured_baseline,
    power_plan,
    require_reachable,
)
from anven_pipelines.spec import SignOff
from anven_pipelines.stats.noninferiority import noninferiority
from tests.builders import a_migration


def items(weights: list[float], clusters: list[str] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"weight": weights, "cluster": clusters or [f"k{at}" for at in range(len(weights))]})


def test_the_plan_has_the_published_numbers_of_items() -> None:
    plan = power_plan(Baseline(0.8, "planned"), a_migration(golden={"holdout": 0.25}))
    assert plan.schema == POWER_PLAN.schema
    needed = {(row["margin"], row["discordance"]): row for row in plan.iter_rows(named=True)}
    # 3 % of 0.8 are 2.4 points: (1.6449 + 0.8416)^2 x 0.1 / 0.024^2 = 1073.4.
    assert needed[0.03, 0.1]["sealed_items"] == 1_074
    assert needed[0.03, 0.1]["items"] == 4_296
    assert [each for each, row in needed.items() if row["declared"]] == [(0.03, 0.2)]


def test_equal_items_have_no_design_effect() -> None:
    assert design_effect(items([3.0] * 10)) == 1.0
    assert design_effect(items([])) == 1.0


def test_the_design_effect_is_that_of_weights_times_that_of_conversations() -> None:
    # Weights 1, 1, 2: 3 x 6 / 16 = 1.125. Conversations of 2 and 1 turns: (4 + 1) / 3 turns around the average item.
    assert design_effect(items([1, 1, 2])) == pytest.approx(1.125)
    assert design_effect(items([1, 1, 2], ["a", "a", "b"])) == pytest.approx(1.125 * (1 + (5 / 3 - 1) * 0.1))


def test_the_certified_margin_is_the_one_that_needs_so_many_items() -> None:
    criteria = SignOff(quality_margin=0.05)
    for margin in (0.03, 0.05):
        needed = items_for(margin=margin, level=0.05, baseline=0.9)
        assert certified_margin(items([1.0] * needed), criteria, baseline=0.9) == pytest.approx(margin, rel=1e-3)
    assert certified_margin(items([1.0] * 3), criteria, baseline=0.9) > 0.5
    assert items_like(items([2.0] * 3), criteria, baseline=0.9) == items_for(margin=0.05, level=0.05, baseline=0.9)


def test_conversations_need_more_items_and_certify_a_wider_margin() -> None:
    criteria = SignOff(quality_margin=0.05)
    talk = items([1.0] * 900, [f"k{at // 5}" for at in range(900)])
    alone = items_for(margin=0.05, level=0.05, baseline=0.8)
    needed = items_like(talk, criteria, baseline=0.8)
    # 1 + 4 x 0.1 for the conversations, and some for the one that the test imagines against the claim.
    assert 1.4 * alone < needed < 1.9 * alone
    assert certified_margin(talk, criteria, baseline=0.8) == pytest.approx(0.05 * (needed / 900) ** 0.5, rel=0.06)


def test_too_few_conversations_certify_nothing() -> None:
    talk = items([1.0] * 90, [f"k{at // 10}" for at in range(90)])
    criteria = SignOff(quality_margin=0.05)
    assert certified_margin(talk, criteria, baseline=0.8) == 1
    assert items_like(talk, criteria, baseline=0.8) > 90


@pytest.mark.parametrize(("margin", "least"), [(0.03, 118), (0.05, 70)])
def test_the_least_number_of_items_is_that_of_the_test_itself(margin: float, least: int) -> None:
    criteria = SignOff(quality_margin=margin)
    assert least_items(items([]), criteria) == least_items(items([1.0] * 40), criteria) == least
    right = np.ones(least)
    assert noninferiority(right, right, margin=margin, level=0.05).proven
    assert not noninferiority(right[1:], right[1:], margin=margin, level=0.05).proven


def test_conversations_need_far_more() -> None:
    talk = items([1.0] * 1_000, [f"k{at // 17}" for at in range(1_000)])
    assert least_items(talk, SignOff(quality_margin=0.03)) > 1_000


def test_a_margin_out_of_reach_is_refused_with_what_would_do() -> None:
    migration = a_migration(golden={"size": "all", "holdout": 0.5})
    require_reachable(items([1.0] * 118), migration)
    with pytest.raises(InvalidInput, match=r"117 sealed items can never certify a margin of 3\.0% at the 5% level"):
        require_reachable(items([1.0] * 117), migration)
    with pytest.raises(InvalidInput, match=r"0 sealed items.*At least 118 sealed items are.*236 golden items"):
        require_reachable(items([]), migration)
    talk = items([1.0] * 1_000, [f"k{at // 17}" for at in range(1_000)])
    with pytest.raises(InvalidInput, match=r"1000 sealed items in 59 conversations can never.*weights like these,"):
        require_reachable(talk, migration)
    with pytest.raises(InvalidInput, match="90 sealed items in 9 conversations can never"):
        require_reachable(items([1.0] * 90, [f"k{at // 10}" for at in range(90)]), migration)


def calls(answers: list[str], **changes: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"r{at}" for at in range(len(answers))],
            "turn_key": [f"{at:04}" for at in range(len(answers))],
            "output": [f'{{"answer": "{answer}"}}' for answer in answers],
            "ground_truth": "yes",
            "exclusion": pl.Series([None] * len(answers), dtype=pl.String),
            "adversarial": False,
        }
        | changes
    )


def test_the_baseline_is_that_of_the_logged_answers() -> None:
    measured = measured_baseline(calls(["yes"] * 45 + ["no"] * 15), a_migration())
    assert measured == Baseline(0.75, "60 logged answers, graded")


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (["yes"] * 29, {}),
        (["no"] * 60, {}),
        (["yes"] * 60, {"adversarial": True}),
        (["yes"] * 60, {"exclusion": "error"}),
        (["yes"] * 60, {"ground_truth": " "}),
    ],
)
def test_without_enough_right_answers_of_the_traffic_the_planned_baseline_holds(
    found: list[str], changes: dict[str, Any]
) -> None:
    assert measured_baseline(calls(found, **changes), a_migration()).mean == PLANNED_BASELINE


def test_no_judge_is_asked_for_a_baseline() -> None:
    judge = {"model": "judge", "url": "http://127.0.0.1:1/v1"}
    asked = a_migration(grading=[{"kind": "ragas", "judge": judge}])
    assert measured_baseline(calls(["yes"] * 60), asked).mean == PLANNED_BASELINE
