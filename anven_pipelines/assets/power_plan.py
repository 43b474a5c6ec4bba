"""The plan that says how many items a sign-off needs."""

import dagster as dg

from anven_pipelines.assets.charts import power_chart
from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    OWNERS,
    declared_input,
    definition_metadata,
    markdown_table,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.candidates import judged
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.power import POWER_PLAN, measured_baseline, power_plan
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking


@dg.asset(
    name="power_plan",
    group_name="golden",
    kinds={"parquet"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(POWER_PLAN),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
)
def planned_power(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Items that a sign-off needs, over margins and shares of discordant pairs, at the legacy model's own baseline."""
    declared = migrations.of(context.partition_key)
    logged = calls_of(request_log, declared)
    baseline = measured_baseline(
        judged(artifacts.read(logged), REQUEST_LOG.empty(), declared.migration), declared.migration
    )
    plan = power_plan(baseline, declared.migration)
    needed = plan.filter("declared")["sealed_items"].item()
    manifest = artifacts.publish(
        POWER_PLAN,
        [plan],
        inputs={"request_log": logged.digest, **declared_input(declared.migration, "power_plan")},
        facts={"plan": {"baseline": baseline.mean, "baseline_source": baseline.source, "sealed_items": needed}},
    )
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            "sealed_items_needed": needed,
            "baseline": baseline.mean,
            "baseline_source": baseline.source,
            "chart": power_chart(plan),
            "plan": markdown_table(plan),
        },
        metrics={"sealed_items_needed": needed, "baseline": baseline.mean},
    )
