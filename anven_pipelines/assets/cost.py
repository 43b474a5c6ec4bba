"""What the workload costs today, what it would cost on the target, and when the migration pays back."""

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    MIGRATION,
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.capacity import demand_of
from anven_pipelines.domain.cost import COST, CostModel, cost_of
from anven_pipelines.domain.errors import StaleInput
from anven_pipelines.domain.inventory import INVENTORY_SQL, traffic_of
from anven_pipelines.domain.load import Saturation
from anven_pipelines.domain.load_plan import CALLS_SQL, logged_calls
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.serving import Benchmark
from anven_pipelines.domain.workload import explain_stale
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.price_map import litellm_price
from anven_pipelines.spec import Migration

_LOAD_BENCHMARK = "load_benchmark"
# Dagster 1.13 points from a materialisation to the newest event of each dependency, and takes a partition that has no
# event yet for unchanged ever after. The storage's first event, which none of it can be, makes a later one be noticed.
_NEVER_MADE = {f"dagster/input_event_pointer/{_LOAD_BENCHMARK}": "1"}
_COST_MEASURED = Check("cost_model", "cost_measured", "Both arms' cost could be measured.")


@dg.asset(
    group_name="cost",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="2",
    partitions_def=workloads,
    metadata=definition_metadata(COST),
    deps=[_LOAD_BENCHMARK],  # read where it was ever made; as an argument it would be needed
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
    """Cost per request in both arms, what serving the target costs, the saving with its interval, and the payback."""
    workload = context.partition_key
    require_same("golden_dataset", legacy_answers, target_answers, current=golden_dataset)
    declared = migrations.of(workload)
    migration = declared.migration
    require_current(migration, golden_dataset=golden_dataset, target_answers=target_answers)
    calls = calls_of(request_log, declared)
    load_benchmark = artifacts.load_manifest(_LOAD_BENCHMARK, workload)
    model = cost_of(
        artifacts.read(legacy_answers),
        artifacts.read(target_answers),
        migration,
        traffic_of(artifacts.query(INVENTORY_SQL, request_log=calls), migration),
        golden=artifacts.read(golden_dataset),
        legacy_price=litellm_price(migration.legacy.model),
        benchmark=_benchmark(load_benchmark, migration, artifacts, calls=calls, target_answers=target_answers),
    )
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "legacy_answers": legacy_answers.digest,
        "target_answers": target_answers.digest,
        **({_LOAD_BENCHMARK: load_benchmark.digest} if load_benchmark else {}),
        **declared_input(migration, "cost_model"),
    }
    manifest = artifacts.publish(COST, [model.items], inputs=inputs, facts={"cost": model.to_json()})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            "status": f"{model.status}: {model.reason}",
            "serving": f"{model.serving.source}: {model.serving.reason}",
            "arms": markdown_table(_arms(model)),
            "items": markdown_table(model.items, rows=5),
        },
        params={"one_off_usd": model.one_off_usd, "serving": model.serving.source},
        metrics=_metrics(model),
        checks=[_COST_MEASURED.result(passed=model.status != "unmeasured", found=model.reason)],
        tags=None if load_benchmark else _NEVER_MADE,
    )


def require_newest_benchmark(cost_model: Manifest, workload: str, artifacts: ArtifactStore) -> None:
    """Refuse a cost model that was made before the newest load benchmark.

    Raises:
        StaleInput: it was; the verdict would rest on a serving cost that has been measured anew since.
    """
    newest = artifacts.load_manifest(_LOAD_BENCHMARK, workload)
    if newest is not None and cost_model.inputs.get(_LOAD_BENCHMARK) != newest.digest:
        message = (
            f"workload {workload!r}: {_LOAD_BENCHMARK} {newest.digest[:12]} was made since cost_model was "
            "materialised, which does not rest on it; materialise cost_model again"
        )
        raise StaleInput(message)


def _benchmark(
    manifest: Manifest | None,
    migration: Migration,
    artifacts: ArtifactStore,
    *,
    calls: Manifest,
    target_answers: Manifest,
) -> Benchmark | None:
    """Return what the benchmark and the log of today say; None where none was ever made."""
    if manifest is None:
        return None
    times = logged_calls(artifacts.query(CALLS_SQL, request_log=calls), migration.legacy)
    return Benchmark(
        digest=manifest.digest,
        stale=_why_stale(manifest, migration, target_answers=target_answers),
        target=Saturation.model_validate(manifest.facts["load"]["target"]),
        demand=demand_of(times),
    )


def _why_stale(load_benchmark: Manifest, migration: Migration, *, target_answers: Manifest) -> str | None:
    """Say why the benchmark does not speak of the target as it is judged; None where it does."""
    for name in ("golden_dataset", "adapted_prompt"):
        if load_benchmark.inputs[name] != target_answers.inputs[name]:
            return f"it was run on another version of {name}; materialise load_benchmark again"
    return explain_stale(migration, _LOAD_BENCHMARK, load_benchmark.inputs.get(MIGRATION))


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
        "target_usd_per_day": model.serving.usd_per_day,
        "net_saving_usd_per_request": model.net_saving_per_request.estimate if model.net_saving_per_request else None,
        "payback_days": model.payback.days,
    }
