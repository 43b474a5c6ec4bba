"""What runs today: applications, endpoints and models with their traffic, latency, spend and risk."""

import dagster as dg

from anven_pipelines.assets.logged_calls import all_days
from anven_pipelines.assets.materialization import OWNERS, definition_metadata, markdown_table, result
from anven_pipelines.domain.inventory import INVENTORY, INVENTORY_SQL
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.mlflow_tracking import MlflowTracking


@dg.asset(
    group_name="assess",
    kinds={"duckdb", "parquet"},
    owners=OWNERS,
    code_version="1",
    metadata=definition_metadata(INVENTORY),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
)
def workload_inventory(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """One row per application, endpoint, provider and model over all log days."""
    merged = all_days(request_log)
    inventory = INVENTORY.conform(artifacts.query(INVENTORY_SQL, request_log=merged))
    manifest = artifacts.publish(INVENTORY, [inventory], inputs={"request_log": merged.digest})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={"inventory": markdown_table(inventory), "log_days": sorted(request_log)},
        metrics={"calls": merged.rows},
    )
