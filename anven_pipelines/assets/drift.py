"""Does the frozen evaluation set still represent production?"""

import dagster as dg

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    definition_metadata,
    publish_document,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.candidates import strata_of
from anven_pipelines.domain.drift import find_drift, frozen_traffic, since_freeze
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_STILL_REPRESENTS_TRAFFIC = Check(
    "traffic_drift",
    "still_represents_traffic",
    "The newest calls fall into the strata of the golden dataset as they did at the freeze; measured, not assumed.",
    partitions_def=workloads,
)


@dg.asset(
    group_name="monitor",
    kinds={"json"},
    owners=OWNERS,
    code_version="2",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[_STILL_REPRESENTS_TRAFFIC.spec],
)
@carries_checks
def traffic_drift(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    golden_dataset: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The calls logged since the freeze against the strata that the golden dataset was drawn from."""
    declared = migrations.of(context.partition_key)
    limits, strata = declared.migration.drift, declared.migration.golden.strata
    logged = calls_of(request_log, declared)
    drift = find_drift(
        frozen_traffic(artifacts.read(golden_dataset), golden_dataset.facts, strata),
        since_freeze(strata_of(artifacts.read(logged), declared.migration), golden_dataset.facts, days=limits.days),
        strata,
        limits,
    )
    document = drift.model_dump_json(indent=2)
    inputs = {"golden_dataset": golden_dataset.digest, "request_log": logged.digest}
    return result(
        context,
        publish_document(artifacts, document, inputs=inputs),
        tracking=tracking,
        metadata={"status": drift.status, "message": drift.reason, "moved": list(drift.moved)},
        metrics={"distance": drift.distance, "live_calls": drift.live_calls},
        documents={"drift.json": document},
        checks=[_STILL_REPRESENTS_TRAFFIC.result(passed=drift.represents, found=drift.reason)],
    )
