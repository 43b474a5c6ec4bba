"""The frozen evaluation set of a workload."""

import math

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.golden import AMBIGUOUS, GOLDEN, freeze
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.power import items_for
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_CANDIDATES_CONSERVED = Check(
    "golden_dataset",
    "candidates_conserved",
    "Logged calls are golden items or are left out for a counted reason.",
    blocking=True,
)
_ENOUGH_SEALED_ITEMS = Check(
    "golden_dataset", "enough_sealed_items", "As many sealed items as the margin is planned to need."
)


@dg.asset(
    group_name="golden",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(GOLDEN),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[
        _CANDIDATES_CONSERVED.spec,
        _ENOUGH_SEALED_ITEMS.spec,
    ],
)
@carries_checks
def golden_dataset(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Frozen evaluation set with its sealed holdout; a new freeze adds a version, never edits one."""
    declared = migrations.of(context.partition_key)
    logged = calls_of(request_log, declared)
    criteria = declared.migration.sign_off
    needed = items_for(margin=criteria.quality_margin, level=criteria.level)
    golden = declared.migration.golden
    freezing = freeze(artifacts.read(logged), declared.migration, needed=math.ceil(needed / golden.holdout))
    if contradicting := freezing.exclusions.get(AMBIGUOUS):
        context.log.warning("%s logged calls are left out: calls of one request id say different things", contradicting)
    sealed = int((freezing.rows["split"] == "sealed").sum())
    manifest = artifacts.publish(
        GOLDEN,
        [freezing.rows],
        inputs={"request_log": logged.digest, **declared_input(declared.migration, "golden_dataset")},
        facts={"golden": freezing.facts},
    )
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            "sealed_items": sealed,
            "items_needed": needed,
            "strata": markdown_table(pl.DataFrame(freezing.facts["strata"])),
            "left_out": dg.MetadataValue.json(freezing.exclusions),
            "example": markdown_table(freezing.rows.select("id", "source_prompt", "ground_truth"), rows=3),
            "drawn": dg.MetadataValue.json({name: fact for name, fact in freezing.facts.items() if name != "strata"}),
        },
        params={"size": str(golden.size), "holdout": golden.holdout},
        metrics={"items": freezing.rows.height, "sealed_items": sealed},
        checks=[
            _CANDIDATES_CONSERVED.result(
                passed=logged.rows == freezing.rows.height + sum(freezing.exclusions.values()),
                found=f"{logged.rows} logged calls = {freezing.rows.height} items + "
                f"{sum(freezing.exclusions.values())} left out",
            ),
            _ENOUGH_SEALED_ITEMS.result(
                passed=sealed >= needed,
                found=f"{sealed} sealed items; {needed} are planned for a margin of "
                f"{criteria.quality_margin:.1%} at 80 % power",
            ),
        ],
    )
