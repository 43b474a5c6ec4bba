"""The prompts that the target model is asked with."""

import json

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
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
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.prompts import declared_prompt, preview
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_EVERY_PROMPT_FITS = Check(
    "adapted_prompt", "every_prompt_fits", "Every golden prompt is one that the adaptation knows.", blocking=True
)

_EXAMPLES = {"prompts": pl.Int64, "before": pl.String, "after": pl.String}


@dg.asset(
    group_name="adapt",
    kinds={"json"},
    owners=OWNERS,
    code_version="2",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_EVERY_PROMPT_FITS.spec],
)
@carries_checks
def adapted_prompt(
    context: dg.AssetExecutionContext,
    golden_dataset: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The rewrites that the migration file declares, or the legacy prompt unchanged; neither claims a gain."""
    migration = migrations.of(context.partition_key).migration
    require_current(migration, golden_dataset=golden_dataset)
    prompt = declared_prompt(migration.prompt)
    golden = artifacts.read(golden_dataset)
    logged = [json.loads(messages) for messages in golden["source_prompt"]]
    shown = preview(prompt, logged, may_be_shown=(golden["split"] == "open").to_list())
    document = prompt.model_dump_json()
    inputs = {"golden_dataset": golden_dataset.digest, **declared_input(migration, "adapted_prompt")}
    return result(
        context,
        publish_document(artifacts, document, inputs=inputs),
        tracking=tracking,
        metadata={
            "strategy": prompt.strategy,
            "description": prompt.description,
            "prompt": dg.MetadataValue.json(prompt.model_dump(mode="json")),
            "examples": markdown_table(pl.DataFrame(shown.examples, schema=_EXAMPLES, orient="row")),
        },
        params={"strategy": prompt.strategy, "version": prompt.version},
        metrics={"prompts_that_do_not_fit": shown.unfit},
        documents={"prompt.json": document},
        checks=[_EVERY_PROMPT_FITS.result(passed=shown.unfit == 0, found=shown.message)],
    )
