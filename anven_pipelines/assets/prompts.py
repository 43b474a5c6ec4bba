"""The legacy prompts as they are found in the logs, and the prompts that the target model is asked with."""

from typing import Any

import dagster as dg
import polars as pl

from anven_pipelines.assets.charts import gain_chart
from anven_pipelines.assets.check import Check
from anven_pipelines.assets.holdout import record_shown
from anven_pipelines.assets.inference import AnswerConfig
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    publish_document,
    read_document,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.assets.prompt_looks import PromptLooks
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.prompt_baseline import Baseline, baseline_of, legacy_prompts
from anven_pipelines.domain.prompt_declared import (
    broken_declarations,
    declarations,
    require_tested,
    unchecked_declarations,
)
from anven_pipelines.domain.prompt_report import Adaptation, candidate_prompts
from anven_pipelines.domain.prompt_split import asked_by_searches
from anven_pipelines.domain.prompts import calls_of, declared_prompt, preview
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.prompt_search import PromptSearch
from anven_pipelines.resources.state_store import StateStore

_EVERY_CALL_COVERED = Check(
    "prompt_baseline", "every_call_covered", "Every golden prompt has a template; others are asked as they are."
)
_EVERY_PROMPT_FITS = Check(
    "adapted_prompt", "every_prompt_fits", "Every golden prompt is one that the adaptation knows.", blocking=True
)
_CONSTRAINTS_KEPT = Check(
    "adapted_prompt",
    "constraints_kept",
    "Policies, slots, tools, contract and length of the legacy prompts are kept, also by prompts that are declared.",
)
_GAIN_PROVEN = Check(
    "adapted_prompt",
    "gain_proven",
    "A prompt that was looked for is better than the legacy one on items that no search has seen; else the legacy "
    "prompt stands.",
)

EPOCH = "epoch"
"""Fact of the prompt's manifest: within which epoch the search was answered."""

_EXAMPLES = {"prompts": pl.Int64, "before": pl.String, "after": pl.String}


@dg.asset(
    group_name="adapt",
    kinds={"json"},
    owners=OWNERS,
    code_version="2",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_EVERY_CALL_COVERED.spec],
)
@carries_checks
def prompt_baseline(
    context: dg.AssetExecutionContext,
    golden_dataset: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The legacy prompts as templates: shared text, slots, few-shot turns, tools, output contract, policies."""
    migration = migrations.of(context.partition_key).migration
    require_current(migration, golden_dataset=golden_dataset)
    declared = migration.prompt
    baseline = baseline_of(artifacts.read(golden_dataset), policies=declared.policies, declared=declared.templates)
    document = baseline.to_json()
    inputs = {"golden_dataset": golden_dataset.digest, **declared_input(migration, "prompt_baseline")}
    return result(
        context,
        publish_document(artifacts, document, inputs=inputs),
        tracking=tracking,
        metadata={
            "templates": markdown_table(baseline.table()),
            "policies_proposed": dg.MetadataValue.json(dict(baseline.proposed)),
            "uncovered": dg.MetadataValue.json(dict(baseline.uncovered)),
            "prompts": dg.MetadataValue.md(baseline.markdown()),
        },
        params={"templates": len(baseline.templates)},
        metrics={"prompts_without_template": sum(baseline.uncovered.values())},
        documents={"templates.json": document},
        prompts=legacy_prompts(baseline, context.partition_key, golden=golden_dataset.digest),
        checks=[
            _EVERY_CALL_COVERED.result(passed=not baseline.uncovered, found=baseline.coverage()),
        ],
    )


@dg.asset(
    group_name="adapt",
    kinds={"json", "litellm"},
    owners=OWNERS,
    code_version="7",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_EVERY_PROMPT_FITS.spec, _CONSTRAINTS_KEPT.spec, _GAIN_PROVEN.spec],
)
@carries_checks
def adapted_prompt(  # noqa: PLR0913, PLR0917 - Dagster gives an asset its inputs and resources as arguments
    context: dg.AssetExecutionContext,
    config: AnswerConfig,
    golden_dataset: Manifest,
    prompt_baseline: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    prompt_search: PromptSearch,
    state: StateStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The prompts that the target is asked with: declared, or found and proven better; else the legacy ones."""
    require_same("golden_dataset", prompt_baseline, current=golden_dataset)
    migration = migrations.of(context.partition_key).migration
    require_current(migration, golden_dataset=golden_dataset, prompt_baseline=prompt_baseline)
    golden = artifacts.read(golden_dataset)
    templates = Baseline.from_json(read_document(artifacts, prompt_baseline)).templates
    calls, open_ones = calls_of(golden), (golden["split"] == "open").to_list()
    declared = declarations(
        templates, calls, migration.prompt, contract=migration.contract, asked=asked_by_searches(golden).to_list()
    )
    require_tested(declared, calls, migration.prompt, may_be_shown=open_ones)
    adaptation = None
    if migration.prompt.mode != "declared":
        record_shown(golden_dataset, context.partition_key, state)
        looks = PromptLooks(state, context.partition_key, golden_dataset.digest)
        adaptation = prompt_search.search(
            context, migration, golden, templates, rewrites=declared, looks=looks, epoch=config.epoch
        )
    prompt = adaptation.prompt if adaptation else declared_prompt(migration.prompt)
    shown = preview(prompt, calls, may_be_shown=open_ones)
    broken = broken_declarations(declared) + unchecked_declarations(declared, migration.prompt)
    document = prompt.model_dump_json()
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "prompt_baseline": prompt_baseline.digest,
        **declared_input(migration, "adapted_prompt"),
    }
    report = adaptation.to_json() if adaptation else {}
    facts = {"adaptation": report, EPOCH: config.epoch} if report else {}
    return result(
        context,
        publish_document(artifacts, document, inputs=inputs, facts=facts),
        tracking=tracking,
        metadata={
            "strategy": prompt.strategy,
            "description": prompt.description,
            "prompt": dg.MetadataValue.json(prompt.model_dump(mode="json")),
            "examples": markdown_table(pl.DataFrame(shown.examples, schema=_EXAMPLES, orient="row")),
            **_metadata(adaptation),
        },
        params={"strategy": prompt.strategy, "version": prompt.version, "mode": migration.prompt.mode},
        metrics={"prompts_that_do_not_fit": shown.unfit, **(adaptation.metrics() if adaptation else {})},
        documents={"prompt.json": document, **({"adaptation.json": canonical_json(report)} if report else {})},
        prompts=candidate_prompts(adaptation, context.partition_key, inputs=inputs) if adaptation else (),
        checks=[
            _EVERY_PROMPT_FITS.result(passed=shown.unfit == 0, found=shown.message),
            _CONSTRAINTS_KEPT.result(
                passed=not broken, found="; ".join(broken) or "every prompt that is declared or was found keeps them"
            ),
            _GAIN_PROVEN.result(
                passed=adaptation is None or adaptation.adapted,
                found="; ".join(adaptation.reasons) if adaptation else "no gain is claimed: the prompt is declared",
            ),
        ],
    )


def _metadata(adaptation: Adaptation | None) -> dict[str, Any]:
    if adaptation is None:
        return {}
    return {
        "gains": dg.MetadataValue.md(adaptation.gains_markdown()),
        "gain_chart": gain_chart(adaptation.gains),
        "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in adaptation.reasons)),
        "changes": dg.MetadataValue.md(adaptation.changes_markdown()),
        "spent": adaptation.spent(),
        "entries": dg.MetadataValue.md(adaptation.entries_markdown()),
        "failed": dg.MetadataValue.md(adaptation.failed_markdown()),
    }
