"""What the workload costs today, what it would cost on the target, and when the migration pays back."""

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
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.cost import COST, CostModel, cost_of
from anven_pipelines.domain.inventory import INVENTORY_SQL, traffic_of
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.price_map import litellm_price

_COST_MEASURED = Check("cost_model", "cost_measured", "Both arms' cost could be measured.")


@dg.asset(
    group_name="cost",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(COST),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[_COST_MEASURED.spec],
)
@carries_checks
def cost_model(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    golden_dataset: Manifest,
    legacy_answers: Manifest,
    target_answers: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Cost per request in both arms, the saving with its interval, and the payback."""
    require_same("golden_dataset", legacy_answers, target_answers, current=golden_dataset)
    declared = migrations.of(context.partition_key)
    require_current(declared.migration, golden_dataset=golden_dataset, target_answers=target_answers)
    inventory = artifacts.query(INVENTORY_SQL, request_log=calls_of(request_log, declared))
    model = cost_of(
        artifacts.read(legacy_answers),
        artifacts.read(target_answers),
        declared.migration,
        traffic_of(inventory, declared.migration),
        golden=artifacts.read(golden_dataset),
        legacy_price=litellm_price(declared.migration.legacy.model),
    )
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "legacy_answers": legacy_answers.digest,
        "target_answers": target_answers.digest,
        **declared_input(declared.migration, "cost_model"),
    }
    manifest = artifacts.publish(COST, [model.items], inputs=inputs, facts={"cost": model.to_json()})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            "status": f"{model.status}: {model.reason}",
            "arms": markdown_table(_arms(model)),
            "items": markdown_table(model.items, rows=5),
        },
        params={"one_off_usd": model.one_off_usd, "target_usd_per_day": model.target_usd_per_day},
        metrics=_metrics(model),
        checks=[_COST_MEASURED.result(passed=model.status != "unmeasured", found=model.reason)],
    )


def _arms(model: CostModel) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "arm": name,
                "items": arm.items,
                "measured": arm.measured,
                "USD per request": "unknown" if arm.mean_usd is None else f"{arm.mean_usd:.6f}",
                "how": ", ".join(f"{count:,} {how}" for how, count in arm.obtained.items()),
            }
            for name, arm in (("legacy", model.legacy), ("target", model.target))
        ]
    )


def _metrics(model: CostModel) -> dict[str, float | None]:
    return {
        "legacy_usd_per_request": model.legacy.mean_usd,
        "target_usd_per_request": model.target.mean_usd,
        "saving_usd_per_request": model.saving_per_request.estimate if model.saving_per_request else None,
        "payback_days": model.payback.days,
    }
