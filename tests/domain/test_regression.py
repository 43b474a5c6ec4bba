"""The nightly comparison: production now against the target's scores at sign-off."""

from __future__ import annotations

import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.evaluation import Arm
from anven_pipelines.domain.regression import compare_with_baseline, serving
from tests.builders import a_migration, answers_of, golden_of, scores_of

ITEMS = 300
NO_CONTRACT = pl.DataFrame(schema={"item_id": pl.String, "kept": pl.Boolean, "reason": pl.String})


def tonight(scores: list[float | None]) -> Arm:
    answers = answers_of([None if score is None else "x" for score in scores])
    grades = pl.DataFrame(
        {
            "item_id": answers["item_id"],
            "score": pl.Series(scores, dtype=pl.Float64),
            "reason": answers["reason"],
            "grades": ["{}"] * len(scores),
        }
    )
    return Arm(answers, grades, NO_CONTRACT)


@pytest.mark.parametrize(
    ("scores", "outcome", "message"),
    [
        ([1.0] * ITEMS, "not worse", "no regression of support is proven: not worse"),
        ([*[0.0] * 60, *[1.0] * 240], "worse", "REGRESSION of support against its sign-off: worse"),
        ([*[None] * 20, *[1.0] * 280], "unproven", "no regression of support is proven: neither side is proven"),
    ],
)
def test_tonight_is_paired_with_the_targets_baseline_and_not_with_legacy(
    scores: list[float | None], outcome: str, message: str
) -> None:
    baseline = scores_of([0.0] * ITEMS, [1.0] * ITEMS)
    report = compare_with_baseline(golden_of(ITEMS), baseline, tonight(scores), a_migration(), epoch="2026-11-21")
    assert report.quality.outcome == outcome
    assert report.quality.legacy_mean == 1.0
    assert report.message.startswith(message)


def test_an_endpoint_target_serves_production_unless_the_file_names_another() -> None:
    target = {"engine": "endpoint", "model": "m", "url": "http://target/v1", "api_key_env": "KEY", "concurrency": 3}
    assert serving(a_migration(target=target)).url == "http://target/v1"
    elsewhere = serving(a_migration(target=target, regression={"url": "http://production/v1", "model": "m-2"}))
    assert (elsewhere.url, elsewhere.model, elsewhere.api_key_env) == ("http://production/v1", "m-2", "KEY")
    assert elsewhere.concurrency == 3


def test_recorded_answers_need_a_url_to_ask() -> None:
    assert serving(a_migration(regression={"url": "http://production/v1"})).model == "target-model"
    with pytest.raises(InvalidInput, match=r"regression\.url is missing"):
        serving(a_migration())
