"""How often the legacy model disagrees with itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from anven_pipelines.domain.noise_floor import noise_floor
from anven_pipelines.domain.request_log import REQUEST_LOG
from tests.builders import a_migration

MIGRATION = a_migration(grading=[{"kind": "text"}])


def calls_of(prompts: list[str], outputs: list[str], **columns: Any) -> pl.DataFrame:
    size = len(prompts)
    return REQUEST_LOG.conform(
        pl.DataFrame(
            {
                "request_id": [f"call-{at:05d}" for at in range(size)],
                "model": ["legacy-model"] * size,
                "status": ["ok"] * size,
                "messages": prompts,
                "params": ["{}"] * size,
                "output": outputs,
            }
            | columns
        )
    )


def test_a_case_by_hand() -> None:
    # p: AAB has 2 of 3 pairs that differ; q: CC has none; r was asked once.
    found = noise_floor(calls_of(list("pppqqr"), list("AABCCD")), MIGRATION)
    assert found.compared_by == "text"
    assert (found.prompts, found.calls) == (2, 5)
    assert found.disagreement == pytest.approx((2 / 3 + 0) / 2)
    assert found.interval is None
    assert "too few prompts for an interval" in found.reason


def test_answers_that_score_the_same_agree_where_there_is_a_ground_truth() -> None:
    texts = ["Paris", "paris.", "Rome", "Oslo"]
    found = noise_floor(calls_of(list("ppqq"), texts, ground_truth=["Paris", "Paris", "Rome", "Rome"]), MIGRATION)
    assert found.compared_by == "score"
    assert found.disagreement == 0.5
    assert noise_floor(calls_of(list("ppqq"), texts), MIGRATION).disagreement == 1.0


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": ["p", "q"]},
        {"params": ["{}", '{"temperature":1}']},
        {"context": ["[1]", "[2]"]},
        {"request_id": ["same", "same"]},
        {"request_id": ["one", None]},
        {"status": ["ok", "error"]},
        {"model": ["legacy-model", "other"]},
        {"output": ["A", None]},
    ],
)
def test_what_is_not_the_same_question_asked_twice_is_not_measured(columns: dict[str, Any]) -> None:
    found = noise_floor(calls_of(["p", "p"], ["A", "B"], **columns), MIGRATION)
    assert found.status == "unmeasured"
    assert found.disagreement is None
    assert "not measured: the log holds no two comparable answers" in found.reason


def test_an_empty_log_and_answers_that_cannot_be_graded_are_not_measured() -> None:
    assert noise_floor(REQUEST_LOG.empty(), MIGRATION).status == "unmeasured"
    numbers = a_migration(grading=[{"kind": "number"}])
    ungradable = calls_of(["p", "p"], ["1", "2"], ground_truth=["one", "one"])
    assert noise_floor(ungradable, numbers).status == "unmeasured"


def test_who_asks_and_the_seed_are_no_part_of_the_question() -> None:
    params = ['{"seed":1,"temperature":1,"user":"a"}', '{"temperature":1,"user":"b"}']
    assert noise_floor(calls_of(["p", "p"], ["A", "B"], params=params), MIGRATION).disagreement == 1.0


def test_the_imagined_prompt_is_no_measured_one() -> None:
    def floor(prompts: int) -> tuple[float, float] | None:
        asked = [str(at // 2) for at in range(2 * prompts)]
        return noise_floor(calls_of(asked, ["A", "A"] * (prompts - 1) + ["A", "B"]), MIGRATION).interval

    assert floor(9) is None
    found = floor(10)
    assert found is not None
    # By hand: 1 of 10 prompts differs and an imagined one does; t with 9 degrees of freedom.
    values = np.array([0.0] * 9 + [1.0, 1.0])
    reach = stats.t.ppf(0.975, 9) * math.sqrt(11 / 10 * values.var() / 11)
    assert found[1] == pytest.approx(values.mean() + reach)


def test_answers_that_never_differed_give_no_certainty() -> None:
    found = noise_floor(calls_of([str(at // 2) for at in range(40)], ["A"] * 40), MIGRATION)
    assert found.disagreement == 0.0
    assert found.interval is not None
    assert found.interval[0] == 0.0
    assert found.interval[1] > 0.10  # the rule of three: 3 of 20 prompts


@pytest.mark.parametrize("truth", [0.02, 0.2, 0.5])
def test_the_interval_covers_the_rate_at_which_pairs_differ(truth: float) -> None:
    rng, prompts = np.random.default_rng(3), [str(at // 2) for at in range(160)]
    covered = 0
    for _ in range(100):
        outputs = np.where(rng.random(80) < truth, "B", "A")
        answers = [answer for output in outputs for answer in ("A", str(output))]
        interval = noise_floor(calls_of(prompts, answers), MIGRATION).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 89  # 95 % of 100 draws, less 2.7 standard errors
