"""Does what serves production still answer as well as on the day of the sign-off?"""

from datetime import UTC, datetime

import dagster as dg

from anven_pipelines.assets.charts import interval_chart
from anven_pipelines.assets.check import Check
from anven_pipelines.assets.evaluation import grade_arm
from anven_pipelines.assets.holdout import record_asked
from anven_pipelines.assets.inference import AnswerConfig
from anven_pipelines.assets.materialization import (
    DOCUMENT,
    OWNERS,
    carries_checks,
    definition_metadata,
    publish_document,
    read_document,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.errors import MissingInput, StaleInput
from anven_pipelines.domain.grading import GRADER_VERSION
from anven_pipelines.domain.inference import requests_for, work_key
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.prompts import AdaptedPrompt
from anven_pipelines.domain.regression import compare_with_baseline, serving
from anven_pipelines.domain.sign_off import JUDGED, SIGNED_OFF, sign_off_stream
from anven_pipelines.domain.workload import declared_digest
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec import Migration

_NO_REGRESSION = Check(
    "production_regression",
    "no_regression",
    "What serves production is not proven worse than at sign-off by more than the margin.",
    blocking=True,
)
_PROVEN_NOT_WORSE = Check(
    "production_regression",
    "proven_not_worse",
    "What serves production is proven not worse than at sign-off, and equally measured.",
)


@dg.asset(
    group_name="monitor",
    kinds={"litellm", "json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
    deps=["sign_off"],
    check_specs=[
        _NO_REGRESSION.spec,
        _PROVEN_NOT_WORSE.spec,
    ],
)
@carries_checks
def production_regression(
    context: dg.AssetExecutionContext,
    config: AnswerConfig,
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    batch_inference: BatchInference,
    judge: Judge,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The golden set asked of what serves production, paired with the scores frozen at sign-off.

    The report tells how the sealed items were answered, by whatever stands at the URL. So each night is in the ledger
    before it asks, and burns them: the sign-off that stands can be repeated, another target, prompt or limit needs new
    items.
    """
    migration = migrations.of(context.partition_key).migration
    epoch = config.epoch or datetime.now(UTC).date().isoformat()
    golden, prompt, baseline = _frozen(migration, state, artifacts)
    production = serving(migration)
    record_asked(golden, migration.workload, state, night=epoch, model=production.model)
    items = artifacts.read(golden)
    adapted = AdaptedPrompt.model_validate_json(read_document(artifacts, prompt))
    key = work_key(golden_digest=golden.digest, prompt_digest=adapted.version, target=production, epoch=epoch)
    answers, _ = batch_inference.answer(context, production, requests_for(items, adapted, production), key=key)
    report = compare_with_baseline(
        items, artifacts.read(baseline), grade_arm(answers, items, migration, judge), migration, epoch=epoch
    )
    document = report.model_dump_json(indent=2)
    inputs = {"golden_dataset": golden.digest, "adapted_prompt": prompt.digest, "scores": baseline.digest}
    return result(
        context,
        publish_document(artifacts, document, inputs=inputs),
        tracking=tracking,
        metadata={"message": report.message, "chart": interval_chart(report.quality, report.segments)},
        params={"epoch": epoch, "margin": migration.regression.margin},
        metrics={
            "baseline_mean": report.quality.legacy_mean,
            "production_mean": report.quality.target_mean,
            "difference": report.quality.estimate,
        },
        documents={"regression.json": document},
        checks=[
            _NO_REGRESSION.result(passed=report.quality.outcome != "worse", found=report.message),
            _PROVEN_NOT_WORSE.result(
                passed=report.quality.outcome == "not worse" and not report.missingness.differs, found=report.message
            ),
        ],
    )


def _frozen(migration: Migration, state: StateStore, artifacts: ArtifactStore) -> tuple[Manifest, Manifest, Manifest]:
    """Return golden dataset, prompt and scores as they were at the last sign-off."""
    workload = migration.workload
    signed = state.latest(sign_off_stream(workload), SIGNED_OFF)
    if signed is None:
        message = f"workload {workload!r} has no sign-off that was GO to compare with; materialise sign_off first"
        raise MissingInput(message)
    graded_now = {"grading": declared_digest(migration, "scores"), "grader_version": GRADER_VERSION}
    if any(signed.payload.get(name) != digest for name, digest in graded_now.items()):
        message = f"the grading of workload {workload!r} is not that of its last sign-off; sign off again to compare"
        raise StaleInput(message)
    frozen = []
    for asset in ("golden_dataset", "adapted_prompt", JUDGED):
        digest = signed.payload[asset]
        manifest = artifacts.load_manifest(asset, workload, digest=digest)
        if manifest is None:
            message = (
                f"{asset} {digest} of the last sign-off is not in the artifact store; restore it, or sign off again"
            )
            raise MissingInput(message)
        frozen.append(manifest)
    return frozen[0], frozen[1], frozen[2]
