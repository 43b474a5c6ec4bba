"""Where a workload's rollout stands, and its next step: decided anew on fresh evidence whenever it is materialised."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

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
from anven_pipelines.domain.notice import Notice, notices_of
from anven_pipelines.domain.rollout import RollBack
from anven_pipelines.domain.rollout_report import harm_of, history_of, percent, report_of, units_words
from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.rollouts import Look, Rollouts
from anven_pipelines.resources.uptime import uptime

_NO_HARM = Check(
    "rollout_status",
    "no_proven_harm",
    "Nothing about this attempt's target is proven to be worse than its limit, and the gateway's breaker did not trip.",
    partitions_def=workloads,
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
    The sensor `rollout` does where a change is due; while a rollout holds, the sensor's ticks say what is missing.
    """
    found = rollouts.step(context.partition_key, now=datetime.now(UTC), uptime=uptime())
    changes = notices_of(found.plan.workload, rollouts.state.events(stream_of(found.plan.workload)), after=0)
    harm = found.decision.reasons if isinstance(found.decision, RollBack) else harm_of(changes)
    report = report_of(found.plan, found.before, found.evidence, found.decision, found.status)
    document = canonical_json(report)
    return result(
        context,
        publish_document(artifacts, document, inputs={"plan": found.plan.digest}),
        tracking=tracking,
        metadata=_shown(found, report, changes),
        params={"attempt": report["attempt"], "generation": report["generation"]},
        metrics={"share": report["share"], "stage": report["stage"]},
        documents={"rollout.json": document},
        checks=[_NO_HARM.result(passed=not harm, found="; ".join(harm) or "none is proven")],
    )


def _shown(found: Look, report: Mapping[str, Any], changes: Sequence[Notice]) -> dict[str, Any]:
    """Return what the UI shows: what was decided and why, where the rollout stands, and how it came there."""
    held, has = percent(found.before.share(found.plan)), percent(report["share"])
    stage = "none" if report["stage"] is None else f"{report['stage'] + 1} of {len(report['stages'])}"
    evidence = [
        {
            "metric": each["metric"],
            "state": f"{each['state']}{' (waived)' if each['waived'] else ''}",
            "found": each["found"].removeprefix(f"{each['metric']} ").removeprefix("unknown: "),
        }
        for each in report["evidence"]
    ]
    flags = "; ".join(flag.words for flag in found.status.flags)
    units = report["units"]
    told = {
        "units": units and units_words(units),
        "evidence_of": report["as_of"],
        "problem": report["problem"],
        "flags": flags,
        "evidence": found.evidence.comparisons
        and markdown_table(pl.DataFrame(evidence, schema=_EVIDENCE_SHOWN), longest=_LONGEST),
    }
    return {
        "decision": report["decision"],
        "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in report["reasons"])),
        "traffic": f"{has} at the target" if has == held else f"{has} at the target, {held} before",
        "stage": stage,
        "phase": report["phase"].replace("_", " "),
        "attempt": report["attempt"],
        "generation": report["generation"],
        "share": report["share"],
        **{name: value for name, value in told.items() if value},
        "history": markdown_table(pl.DataFrame(history_of(changes), schema=_HISTORY_SHOWN), longest=_LONGEST),
    }


_EVIDENCE_SHOWN = {"metric": pl.String, "state": pl.String, "found": pl.String}
_HISTORY_SHOWN = {
    "UTC": pl.String,
    "change": pl.String,
    "generation": pl.Int64,
    "at the target": pl.String,
    "why": pl.String,
}
_LONGEST = 1000  # characters of a cell
