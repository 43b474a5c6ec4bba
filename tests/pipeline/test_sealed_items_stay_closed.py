"""What Dagster shows before sign-off tells nothing of how the sealed items were answered."""

from __future__ import annotations

import json

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.assets.evaluation import reasons_told
from anven_pipelines.chain import CHAIN_ASSETS
from anven_pipelines.domain.sign_off import JUDGED
from tests.builders import scores_of
from tests.pipeline.conftest import Place, logged_call, recorded_answer

WRONG, TIMED_OUT = "differs from the ground truth", "timeout"
# The power plan is made before anything is sealed, and a price tells nothing of an answer's worth.
BEFORE_SIGN_OFF = [asset for asset in CHAIN_ASSETS if asset not in {"power_plan", "cost_model", "sign_off"}]


def graded(split: str) -> pl.DataFrame:
    reasons = [None, WRONG, TIMED_OUT]
    return scores_of([1.0, 1.0, 1.0], [1.0, 0.0, None], split=[split] * 3, target_reason=reasons)


def test_each_reason_is_counted() -> None:
    told = reasons_told(graded("open"))
    assert set(told.rows()) == {("target", WRONG, 1, 0), ("target", TIMED_OUT, 1, 1)}


@pytest.mark.parametrize("holdout", [0.5, 1.0])
def test_no_sealed_prompt_or_answer_stands_in_the_metadata_before_sign_off(place: Place, holdout: float) -> None:
    items, wrong = 160, "a wrong answer"
    place.write_log([logged_call(at, answer=f"logged-{at:03d}") for at in range(items)])
    answers = [recorded_answer(at, f"asked-{at:03d} {wrong}") for at in range(items)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    place.migrate(place.declare(golden={"size": "all", "holdout": holdout}))
    manifest = place.artifacts.load_manifest("golden_dataset", "support")
    assert manifest is not None
    sealed = place.artifacts.read(manifest).filter(pl.col("split") == "sealed")
    for asset in BEFORE_SIGN_OFF:
        event = place.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        shown = str({name: each.value for name, each in event.asset_materialization.metadata.items()})
        for each in sealed.iter_rows(named=True):
            number = each["ground_truth"].zfill(3)
            told = (each["id"], f"logged-{number}", f"asked-{number}", f"ticket {each['ground_truth']}?")
            assert not [text for text in told if text in shown], f"{asset} shows {each['id']}"


@pytest.mark.parametrize("holdout", [0.5, 1.0])
def test_sealed_items_are_graded_by_the_sign_off_alone(place: Place, holdout: float) -> None:
    items = 160
    place.write_log([logged_call(at) for at in range(items)])
    answers = [recorded_answer(at, str(at)) for at in range(items)]
    (place.folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    verdict = place.migrate(place.declare(golden={"size": "all", "holdout": holdout}))
    scores, judged = (rows_of(place, asset) for asset in ("scores", JUDGED))
    graded_columns = [name for name in scores.columns if name.startswith(("legacy_", "target_"))]
    sealed = scores.filter(pl.col("split") == "sealed")
    assert sealed.height == verdict.quality.n == round(items * holdout)
    assert sealed.select(pl.col(graded_columns).is_null().all()).row(0) == (True,) * len(graded_columns)
    assert judged.height == items
    assert judged["target_score"].to_list() == [1.0] * items
    assert judged.filter(pl.col("split") == "open").equals(scores.filter(pl.col("split") == "open"))


def rows_of(place: Place, asset: str) -> pl.DataFrame:
    manifest = place.artifacts.load_manifest(asset, "support")
    assert manifest is not None
    return place.artifacts.read(manifest)
