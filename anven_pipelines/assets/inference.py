"""What each model answers to the golden items."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.materialization import (
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    read_document,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.golden import opened
from anven_pipelines.domain.inference import ANSWERS, join_recorded, legacy_answers_of, requests_for, work_key
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.prompts import AdaptedPrompt
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.spec_target import JobTarget, RecordedTarget, Target

_LEGACY_ROWS_CONSERVED, _TARGET_ROWS_CONSERVED = (
    Check(asset, "rows_conserved", "Every golden item has exactly one answer, failure or unmatched row.", blocking=True)
    for asset in ("legacy_answers", "target_answers")
)
_SOME_ANSWERED = Check(
    "target_answers",
    "some_answered",
    "At least one item was answered; else the answers belong elsewhere or the target is down.",
    blocking=True,
)
_ALL_ANSWERED = Check("target_answers", "all_answered", "Every item was answered; those that were not stay unmeasured.")


class AnswerConfig(dg.Config):
    """Run configuration of an asset that asks a model.

    Attributes:
        epoch: Answers are kept and reused within an epoch; another value asks the model afresh.
    """

    epoch: str = ""


@dg.asset(
    group_name="infer",
    kinds={"parquet"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(ANSWERS),
    check_specs=[_LEGACY_ROWS_CONSERVED.spec],
)
@carries_checks
def legacy_answers(
    context: dg.AssetExecutionContext, golden_dataset: Manifest, artifacts: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult[Manifest]:
    """The answers that the legacy model gave in production, as logged."""
    golden = artifacts.read(golden_dataset)
    answers = legacy_answers_of(golden)
    manifest = artifacts.publish(ANSWERS, [answers], inputs={"golden_dataset": golden_dataset.digest})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata=_answers_metadata(answers, golden),
        metrics=_answer_metrics(answers, golden),
        checks=[_rows_conserved(_LEGACY_ROWS_CONSERVED, golden_dataset, answers)],
    )


@dg.asset(
    group_name="infer",
    kinds={"litellm", "parquet"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(ANSWERS),
    check_specs=[
        _TARGET_ROWS_CONSERVED.spec,
        _SOME_ANSWERED.spec,
        _ALL_ANSWERED.spec,
    ],
)
@carries_checks
def target_answers(
    context: dg.AssetExecutionContext,
    config: AnswerConfig,
    golden_dataset: Manifest,
    adapted_prompt: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    batch_inference: BatchInference,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The target model's answer to every golden item, or the reason why there is none."""
    require_same("golden_dataset", adapted_prompt, current=golden_dataset)
    declared = migrations.of(context.partition_key)
    require_current(declared.migration, golden_dataset=golden_dataset, adapted_prompt=adapted_prompt)
    target = declared.migration.target
    golden = artifacts.read(golden_dataset)
    prompt = AdaptedPrompt.model_validate_json(read_document(artifacts, adapted_prompt))
    figures: Mapping[str, Any] = {}
    if isinstance(target, RecordedTarget):
        answers = read_recorded(context, target, golden, folder=declared.folder)
    else:
        key = work_key(
            golden_digest=golden_dataset.digest, prompt_digest=prompt.version, target=target, epoch=config.epoch
        )
        answers, figures = batch_inference.answer(context, target, requests_for(golden, prompt, target), key=key)
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "adapted_prompt": adapted_prompt.digest,
        **declared_input(declared.migration, "target_answers"),
    }
    manifest = artifacts.publish(ANSWERS, [answers], inputs=inputs)
    answered = int((answers["status"] == "answered").sum())
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            **_answers_metadata(answers, golden),
            **({"batch": dg.MetadataValue.json(figures)} if figures else {}),
            **({"weights": dg.MetadataValue.json(pinned)} if (pinned := _weights_of(target)) else {}),
        },
        params={"engine": target.engine, "model": target.model, "epoch": config.epoch, **_weights_of(target)},
        metrics=_answer_metrics(answers, golden),
        checks=[
            _rows_conserved(_TARGET_ROWS_CONSERVED, golden_dataset, answers),
            _SOME_ANSWERED.result(
                passed=answered > 0,
                found=f"{answered} of {answers.height} items answered; first reason otherwise: "
                f"{next(iter(answers['reason'].drop_nulls()), 'none')}",
            ),
            _ALL_ANSWERED.result(
                passed=answered == answers.height,
                found=f"{answers.height - answered} items have no answer and stay unmeasured",
            ),
        ],
    )


def _weights_of(target: Target) -> Mapping[str, str]:
    """Return which weights answered, from where, and under what licence."""
    if not isinstance(target, JobTarget):
        return {}
    found = {"weights": target.weights, "digest": target.digest, "licence": target.licence}
    return found | ({"revision": target.revision} if target.revision else {})


def read_recorded(
    context: dg.AssetExecutionContext, target: RecordedTarget, golden: pl.DataFrame, *, folder: str
) -> pl.DataFrame:
    """Join the recorded answers to the golden items; lines that are no answer are told one by one."""
    files = list_files(target.answers, base=folder)
    recorded = [REQUEST_LOG.empty()]
    for batch in read_logs(files, log_format=target.format):
        recorded.append(batch.rows)
        for file, line, reason in batch.rejected.select("source_file", "source_line", "reason").iter_rows():
            context.log.warning("%s, line %s is no recorded answer: %s", file, line, reason)
    return join_recorded(golden, pl.concat(recorded), join=target.join)


def _rows_conserved(check: Check, golden: Manifest, answers: pl.DataFrame) -> dg.AssetCheckResult:
    counts = _status_counts(answers)
    return check.result(
        passed=answers.height == golden.rows == sum(counts.values()) and answers["item_id"].n_unique() == golden.rows,
        found=f"{golden.rows} items = " + " + ".join(f"{count} {status}" for status, count in counts.items()),
    )


def _status_counts(answers: pl.DataFrame) -> dict[str, int]:
    return dict(answers["status"].value_counts().sort("status").iter_rows())


def _answers_metadata(answers: pl.DataFrame, golden: pl.DataFrame) -> Mapping[str, Any]:
    failures = answers.filter(pl.col("status") != "answered")
    reasons = (
        failures.group_by("status", "reason").agg(items=pl.len()).sort("items", "reason", descending=[True, False])
    )
    return {
        "statuses": dg.MetadataValue.json(_status_counts(answers)),
        "reasons": markdown_table(reasons) if failures.height else "every item was answered",
        "measured": dg.MetadataValue.json(
            {
                name: int(answers[name].count())
                for name in ("input_tokens", "output_tokens", "ttft_ms", "latency_ms", "cost_usd")
            }
        ),
        "example": dg.MetadataValue.md(f"```\n{first_open_output(answers, golden)}\n```"),
    }


def first_open_output(answers: pl.DataFrame, golden: pl.DataFrame) -> str:
    """Return the first answer to an open item; an answer to a sealed one is not shown."""
    shown = _to_open_items(answers, golden)["output"].drop_nulls()
    return "no open item was answered" if shown.is_empty() else str(shown.first())[:2000]


def _to_open_items(answers: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
    return answers.filter(pl.col("item_id").is_in(opened(golden)["id"].implode()))


def _answer_metrics(answers: pl.DataFrame, golden: pl.DataFrame) -> dict[str, float | None]:
    """Count the answers; how fast they came is a criterion of the verdict, so it is told of the open items only."""
    counts, shown = _status_counts(answers), _to_open_items(answers, golden)
    ttft, latency = shown["ttft_ms"].drop_nulls(), shown["latency_ms"].drop_nulls()
    return {
        **{status: float(counts.get(status, 0)) for status in ("answered", "failed", "unmatched")},
        "open_ttft_p95_ms": None if ttft.is_empty() else ttft.quantile(0.95),
        "open_latency_p95_ms": None if latency.is_empty() else latency.quantile(0.95),
        "output_tokens": None if answers["output_tokens"].count() == 0 else float(answers["output_tokens"].sum()),
    }
