"""How good the answers are, side by side."""

from collections.abc import Sequence

import dagster as dg
import polars as pl

from anven_pipelines.assets.charts import interval_chart
from anven_pipelines.assets.check import Check
from anven_pipelines.assets.holdout import record_shown
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    publish_document,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.evaluation import SCORES, Arm, side_by_side
from anven_pipelines.domain.golden import opened
from anven_pipelines.domain.grading import GRADER_VERSION, check_contract_rows, grader_name
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.scorecard import Scorecard, draw_up
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec import Migration

_ITEMS_CONSERVED = Check("scores", "items_conserved", "Every golden item has exactly one row of scores.", blocking=True)
_ALL_MEASURED = Check("scores", "all_measured", "Every open item has a score in both arms.")
_ARMS_EQUALLY_MEASURED = Check(
    "scorecard", "arms_equally_measured", "Neither arm is measured less often than the other (McNemar's exact test)."
)


@dg.asset(
    group_name="evaluate",
    kinds={"parquet", "ragas"},
    owners=OWNERS,
    code_version=GRADER_VERSION,
    partitions_def=workloads,
    metadata=definition_metadata(SCORES),
    check_specs=[
        _ITEMS_CONSERVED.spec,
        _ALL_MEASURED.spec,
    ],
)
@carries_checks
def scores(  # noqa: PLR0913, PLR0917 - Dagster gives an asset its inputs and resources as arguments
    context: dg.AssetExecutionContext,
    golden_dataset: Manifest,
    legacy_answers: Manifest,
    target_answers: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    judge: Judge,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Score and contract check of both arms on the open items, which are known from here on; sealed rows are empty."""
    require_same("golden_dataset", legacy_answers, target_answers, current=golden_dataset)
    migration = migrations.of(context.partition_key).migration
    require_current(migration, golden_dataset=golden_dataset, target_answers=target_answers)
    golden = artifacts.read(golden_dataset)
    answers = [artifacts.read(each) for each in (legacy_answers, target_answers)]
    rows = pl.concat([grade(opened(golden), answers, migration, judge), SCORES.conform(_ungraded(golden))])
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "legacy_answers": legacy_answers.digest,
        "target_answers": target_answers.digest,
        "adapted_prompt": target_answers.inputs["adapted_prompt"],
        **declared_input(migration, "scores"),
    }
    facts = {"grader_version": GRADER_VERSION, "noise_floor": golden_dataset.facts.get("noise_floor")}
    record_shown(golden_dataset, context.partition_key, state)
    manifest = artifacts.publish(SCORES, [rows], inputs=inputs, facts=facts)
    graded = rows.filter(pl.col("split") == "open")
    unmeasured = int((graded["legacy_score"].is_null() | graded["target_score"].is_null()).sum())
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={"unmeasured_items": unmeasured, "reasons": markdown_table(reasons_told(graded))},
        params={"graders": ", ".join(grader_name(each, at) for at, each in enumerate(migration.grading))},
        metrics={"unmeasured_items": unmeasured},
        checks=[
            _ITEMS_CONSERVED.result(
                passed=rows.height == golden.height, found=f"{rows.height} scored rows for {golden.height} golden items"
            ),
            _ALL_MEASURED.result(
                passed=unmeasured == 0,
                found=f"{unmeasured} of {graded.height} open items lack a score in an arm; none counts as a pass",
            ),
        ],
    )


@dg.asset(
    group_name="evaluate",
    kinds={"json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_ARMS_EQUALLY_MEASURED.spec],
)
@carries_checks
def scorecard(
    context: dg.AssetExecutionContext,
    scores: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The comparison on the open items; the sealed ones stay closed until sign-off."""
    card = draw_up(artifacts.read(scores), migrations.of(context.partition_key).migration)
    document = card.model_dump_json(indent=2)
    manifest = publish_document(artifacts, document, inputs={**scores.inputs, "scores": scores.digest})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={**_scorecard_metadata(card), **noise_floor_metadata(scores)},
        metrics={
            "open_difference": card.quality.estimate if card.quality else None,
            "open_legacy_mean": card.quality.legacy_mean if card.quality else None,
            "open_target_mean": card.quality.target_mean if card.quality else None,
        },
        documents={"scorecard.json": document},
        checks=[
            _ARMS_EQUALLY_MEASURED.result(
                passed=not card.missingness.differs,
                found=f"unmeasured open items: {card.missingness.legacy_unmeasured} legacy, "
                f"{card.missingness.target_unmeasured} target (p = {card.missingness.p_difference:.2g})",
            )
        ],
    )


def grade(golden: pl.DataFrame, answers: Sequence[pl.DataFrame], migration: Migration, judge: Judge) -> pl.DataFrame:
    """Return the SCORES of some golden items from both arms' answers to them, legacy first."""
    legacy, target = (
        grade_arm(each.filter(pl.col("item_id").is_in(golden["id"].implode())), golden, migration, judge)
        for each in answers
    )
    return side_by_side(golden, legacy, target)


def _ungraded(golden: pl.DataFrame) -> pl.DataFrame:
    """Return the sealed items with no more than the golden dataset says of them."""
    return golden.filter(pl.col("split") == "sealed").rename({"id": "item_id"})


def grade_arm(answers: pl.DataFrame, golden: pl.DataFrame, migration: Migration, judge: Judge) -> Arm:
    """Score one arm's answers; judged metrics go to the judge, the rest is computed here."""
    grades = judge.grade(migration.grading, answers, golden)
    return Arm(answers, grades, check_contract_rows(migration.contract, answers))


def noise_floor_metadata(scores: Manifest) -> dict[str, str]:
    """Return how often the legacy model disagrees with itself, to stand beside the margin."""
    noise = scores.facts.get("noise_floor")
    return {"noise_floor": noise["reason"]} if noise else {}


def reasons_told(rows: pl.DataFrame) -> pl.DataFrame:
    """Count the reasons of both arms, the most frequent first."""
    arms = [
        rows.select(pl.lit(arm).alias("arm"), score=f"{arm}_score", reason=f"{arm}_reason")
        for arm in ("legacy", "target")
    ]
    told = pl.concat(arms).drop_nulls("reason")
    grouped = told.group_by("arm", "reason").agg(items=pl.len(), unmeasured=pl.col("score").null_count())
    return grouped.sort("items", "arm", "reason", descending=[True, False, False]).head(20)


def _scorecard_metadata(card: Scorecard) -> dict[str, dg.MetadataValue | str | int]:
    return {
        "summary": dg.MetadataValue.md(card.markdown()),
        "chart": interval_chart(card.quality, card.segments),
        "open_items": card.open_items,
        "sealed_items": card.sealed_items,
    }
