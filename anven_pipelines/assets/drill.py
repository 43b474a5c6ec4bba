"""A workload's roll back, rehearsed on the running gateway whenever it is materialised."""

import dagster as dg

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    definition_metadata,
    publish_document,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.drills import Drills
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_PASSED = Check(
    "rollout_drill",
    "rolls_back_in_time",
    "Every gateway worker gave all synthetic traffic back to legacy in time, and no request failed.",
    partitions_def=workloads,
)


@dg.asset(
    group_name="rollout",
    kinds={"litellm", "json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    check_specs=[_PASSED.spec],
)
@carries_checks
def rollout_drill(
    context: dg.AssetExecutionContext, drills: Drills, artifacts: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult[Manifest]:
    """A roll back rehearsed with synthetic traffic on the running gateway, and the time it took.

    Promotion needs one that passed and is not too old. No application's traffic is touched.
    """
    found = drills.rehearse(context.partition_key, who=f"dagster run {context.run.run_id[:8]}")
    document = canonical_json(found.to_json())
    return result(
        context,
        publish_document(artifacts, document, inputs={}),
        tracking=tracking,
        metadata={"drill": found.words, "seconds": found.seconds, "requests": found.requests},
        params={"limit_s": found.limit_s},
        metrics={"passed": float(found.passed), "seconds": found.seconds, "requests": found.requests},
        documents={"drill.json": document},
        checks=[_PASSED.result(passed=found.passed, found=found.words)],
    )
