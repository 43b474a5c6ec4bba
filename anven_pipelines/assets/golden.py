"""The frozen evaluation set of a workload."""

import math

import dagster as dg
import polars as pl

from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    OWNERS,
    carries_checks,
    check,
    declared_input,
    definition_metadata,
    markdown_table,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.golden import GOLDEN, freeze
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.power import items_for
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking


@dg.asset(
    group_name="golden",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(GOLDEN),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[
        dg.AssetCheckSpec(
            "candidates_conserved",
            asset="golden_dataset",
            blocking=True,
            description="Logged calls are golden items or are left out for a counted reason.",
        ),
        dg.AssetCheckSpec(
            "enough_sealed_items",
            asset="golden_dataset",
            description="As many sealed items as the margin is planned to need.",
        ),
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
    needed = items_for(declared.migration.sign_off)
    golden = declared.migration.golden
    freezing = freeze(artifacts.read(logged), declared.migration, needed=math.ceil(needed / golden.holdout))
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
            check(
                "candidates_conserved",
                asset="golden_dataset",
                passed=logged.rows == freezing.rows.height + sum(freezing.exclusions.values()),
                description=f"{logged.rows} logged calls = {freezing.rows.height} items + "
                f"{sum(freezing.exclusions.values())} left out",
            ),
            check(
                "enough_sealed_items",
                asset="golden_dataset",
                passed=sealed >= needed,
                blocking=False,
                description=f"{sealed} sealed items; {needed} are planned for a margin of "
                f"{declared.migration.sign_off.quality_margin:.1%} at 80 % power",
            ),
        ],
    )
