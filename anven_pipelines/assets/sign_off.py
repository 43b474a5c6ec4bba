"""The verdict on a workload's migration."""

import json
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from anven_pipelines.assets.charts import interval_chart
from anven_pipelines.assets.check import Check
from anven_pipelines.assets.cost import require_newest_benchmark
from anven_pipelines.assets.evaluation import grade, noise_floor_metadata
from anven_pipelines.assets.holdout import ledger_of
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    MIGRATION,
    OWNERS,
    carries_checks,
    definition_metadata,
    publish_document,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.evaluation import SCORES
from anven_pipelines.domain.holdout import OPENED, Ledger, holdout_stream, limits_digest
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.sign_off import JUDGED, REFUSED, SIGNED_OFF, Verdict, decide, explain_burnt, sign_off_stream
from anven_pipelines.domain.signed_target import PROMPT, TARGET, declared_target
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.signed_verdict import prompt_version
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec import Migration

_VERDICT_IS_GO = Check(
    "sign_off", "verdict_is_go", "The gate before production: only GO passes.", blocking=True, partitions_def=workloads
)


@dg.asset(
    group_name="sign_off",
    kinds={"json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_VERDICT_IS_GO.spec],
)
@carries_checks
def sign_off(  # noqa: PLR0913, PLR0917 - Dagster gives an asset its inputs and resources as arguments
    context: dg.AssetExecutionContext,
    golden_dataset: Manifest,
    scores: Manifest,
    cost_model: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    judge: Judge,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """GO, NO-GO or INCONCLUSIVE, on the sealed items alone: graded here, once their opening is in the ledger."""
    workload = context.partition_key
    migration = migrations.of(workload).migration
    require_same("golden_dataset", scores, cost_model, current=golden_dataset)
    require_same("target_answers", scores, cost_model)
    require_current(migration, golden_dataset=golden_dataset, scores=scores, cost_model=cost_model)
    require_newest_benchmark(cost_model, workload, artifacts)
    digests = {
        **{name: digest for name, digest in scores.inputs.items() if name != MIGRATION},
        "scores": scores.digest,
        "cost_model": cost_model.digest,
        **{name: digest for name, digest in cost_model.inputs.items() if name == "load_benchmark"},
        "criteria": digest_of(migration.model_dump(mode="json", include={"sign_off", "golden"})),
        "grading": scores.inputs[MIGRATION],
        "grader_version": str(scores.facts["grader_version"]),
        "limits": limits_digest(migration),
    }
    state.require_intact()
    run, now = context.run.run_id, datetime.now(UTC)
    opening = state.append(
        stream=holdout_stream(workload),
        kind=OPENED,
        key=f"{run}/{digest_of(digests)}",
        payload={
            "run": run,
            **digests,
            **{name: digest for name, digest in golden_dataset.inputs.items() if name == "draw"},
            "waived": sorted(migration.sign_off.waive),
        },
        now=now,
    )
    items = artifacts.read(golden_dataset).select("id", "source_prompt")
    ledger = ledger_of(workload, state, artifacts, items=items)
    seen = ledger.require_admitted(opening)
    judged = _judged(golden_dataset, scores, migration, artifacts, judge)
    verdict = decide(
        artifacts.read(judged),
        cost_model.facts["cost"],
        migration,
        digests=digests,
        burnt=seen.burnt,
        shown=seen.shown,
        attempt=ledger.attempt(opening),
        noise_floor=scores.facts.get("noise_floor"),
    )
    document = verdict.to_json()
    manifest = publish_document(artifacts, document, inputs=digests)
    artifacts.write_json(f"verdicts/{workload}/{manifest.digest}.json", json.loads(document))
    signed = {
        "run": run,
        "verdict": verdict.verdict,
        "verdict_digest": manifest.digest,
        "statuses": {each.name: each.status for each in verdict.criteria},
        JUDGED: judged.digest,
        TARGET: declared_target(migration),
        PROMPT: prompt_version(artifacts, workload, digests["adapted_prompt"]),
        **digests,
    }
    state.append(
        stream=sign_off_stream(workload),
        kind=SIGNED_OFF if verdict.verdict == "GO" else REFUSED,
        key=f"{run}/{manifest.digest}",
        payload=signed,
        now=now,
    )
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            **_metadata(verdict),
            **noise_floor_metadata(scores),
            "looks": _looks(ledger_of(workload, state, artifacts, items=items)),
        },
        params={
            "verdict": verdict.verdict,
            "quality_margin": migration.sign_off.quality_margin,
            "level": migration.sign_off.level,
        },
        metrics={
            "difference": verdict.quality.estimate,
            "legacy_mean": verdict.quality.legacy_mean,
            "target_mean": verdict.quality.target_mean,
            "p_not_worse": verdict.quality.p_not_worse,
            "go": float(verdict.verdict == "GO"),
        },
        documents={"verdict.json": document},
        checks=[
            _VERDICT_IS_GO.result(passed=verdict.verdict == "GO", found=_in_short(verdict), criteria=_criteria(verdict))
        ],
    )


def _judged(
    golden_dataset: Manifest, scores: Manifest, migration: Migration, artifacts: ArtifactStore, judge: Judge
) -> Manifest:
    """Return the scores of all items, the sealed ones graded now or, for the same answers, when they first were.

    A judge model may grade otherwise each time it is asked, and a verdict that is repeated must not.

    Raises:
        MissingInput: answers that the scores rest on are gone.
    """
    workload, inputs = migration.workload, {**scores.inputs, "scores": scores.digest}
    known = artifacts.load_manifest(JUDGED, workload, digest=None)
    if known is not None and (known.inputs, known.facts) == (inputs, scores.facts):
        return known
    answers = []
    for asset in ("legacy_answers", "target_answers"):
        manifest = artifacts.load_manifest(asset, workload, digest=scores.inputs[asset])
        if manifest is None:
            message = f"{asset} {scores.inputs[asset]} is not in the artifact store; materialise it and scores again"
            raise MissingInput(message)
        answers.append(artifacts.read(manifest))
    golden = artifacts.read(golden_dataset)
    sealed = grade(golden.filter(pl.col("split") == "sealed"), answers, migration, judge)
    opened = artifacts.read(scores).filter(pl.col("split") == "open")
    judged = artifacts.publish(SCORES, [opened, sealed], inputs=inputs, facts=scores.facts)
    artifacts.save_manifest(JUDGED, workload, judged)
    return judged


def _in_short(verdict: Verdict) -> str:
    """Say what keeps the verdict from GO, or that nothing does; the UI shows it as one paragraph."""
    gating = [each for each in verdict.criteria if not each.waived]
    open_gates = [f"{each.name} is {each.status}: {each.reason}" for each in gating if each.status != "met"]
    said = open_gates or [f"{', '.join(each.name for each in gating)} are met"]
    waived = [f"waived by the migration file: {', '.join(verdict.waived)}"] if verdict.waived else []
    burnt = [next_step] if (next_step := explain_burnt(verdict)) else []
    return f"{verdict.verdict}. {'; '.join([*said, *waived, *burnt])}"


def _looks(ledger: Ledger) -> dg.MetadataValue:
    """List who opened the workload's holdouts before, the newest last; each failed one raises the chance of luck."""
    looks = ledger.looks()
    return dg.MetadataValue.md("\n".join(f"- {look}, golden dataset {look.golden[:12]}" for look in looks[-20:]))


def _criteria(verdict: Verdict) -> dg.MarkdownMetadataValue:
    rows = "\n".join(
        f"| {each.name} | {each.status}{' (waived)' if each.waived else ''} | {each.reason} |"
        for each in verdict.criteria
    )
    return dg.MetadataValue.md(f"| criterion | status | reason |\n|---|---|---|\n{rows}")


def _metadata(verdict: Verdict) -> dict[str, dg.MetadataValue | str]:
    return {
        "verdict": verdict.verdict,
        "why": _in_short(verdict),
        "criteria": _criteria(verdict),
        "chart": interval_chart(verdict.quality, verdict.segments),
        "verdict_json": dg.MetadataValue.json(json.loads(verdict.to_json())),
    }
