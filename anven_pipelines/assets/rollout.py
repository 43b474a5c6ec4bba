"""Where a workload's rollout stands, and its next step: decided anew on fresh evidence whenever it is materialised."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    definition_metadata,
    markdown_table,
    publish_document,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.rollout import RollBack
from anven_pipelines.domain.rollout_report import report_of
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.uptime import uptime

_NO_HARM = Check(
    "rollout_status",
    "no_proven_harm",
    "Nothing about the target is proven to be worse than its limit, and the gateway's breaker did not trip.",
)


@dg.asset(
    group_name="rollout",
    kinds={"litellm", "json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    deps=["sign_off"],
    check_specs=[_NO_HARM.spec],
)
@carries_checks
def rollout_status(
    context: dg.AssetExecutionContext, rollouts: Rollouts, artifacts: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult[Manifest]:
    """The canary's stage and what was decided now: roll back on proven harm, hold on missing proof, advance on proof.

    It acts on what it decides, so whoever materialises it asks for the next step, and gets it only where it is proven.
    """
    found = rollouts.step(context.partition_key, now=datetime.now(UTC), uptime=uptime())
    report = report_of(found.plan, found.before, found.evidence, found.decision, found.status)
    document = canonical_json(report)
    return result(
        context,
        publish_document(artifacts, document, inputs={"plan": found.plan.digest}),
        tracking=tracking,
        metadata={
            "decision": report["decision"],
            "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in report["reasons"])),
            "phase": report["phase"],
            "share": report["share"],
            "evidence": markdown_table(pl.DataFrame(report["evidence"], schema=_EVIDENCE_SHOWN)),
        },
        params={"attempt": report["attempt"], "generation": report["generation"]},
        metrics={"share": report["share"], "stage": report["stage"]},
        documents={"rollout.json": document},
        checks=[
            _NO_HARM.result(
                passed=not isinstance(found.decision, RollBack), found="; ".join(found.decision.reasons) or "none found"
            )
        ],
    )


_EVIDENCE_SHOWN = {"metric": pl.String, "found": pl.String, "harm": pl.Boolean, "proven": pl.Boolean}
