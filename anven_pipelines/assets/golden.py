"""The frozen evaluation set of a workload, and the plan that says how large it must be."""

import math

import dagster as dg
import polars as pl

from anven_pipelines.assets.charts import power_chart
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
from anven_pipelines.domain.candidates import AMBIGUOUS, judged
from anven_pipelines.domain.golden import GOLDEN, Freeze, freeze
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.power import (
    PLANNED_DISCORDANCE,
    PLANNED_POWER,
    POWER_PLAN,
    certified_margin,
    design_effect,
    items_for,
    measured_baseline,
    power_plan,
    require_reachable,
)
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Declared, Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_CANDIDATES_CONSERVED = Check(
    "golden_dataset",
    "candidates_conserved",
    "Logged calls are golden items or are left out for a counted reason.",
    blocking=True,
)
_ENOUGH_SEALED_ITEMS = Check(
    "golden_dataset", "enough_sealed_items", "As many sealed items as the margin is planned to need."
)
_QUOTAS_FILLED = Check("golden_dataset", "quotas_filled", "Edge-case and adversarial quotas are filled.")


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


@dg.asset(
    group_name="golden",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="2",
    partitions_def=workloads,
    metadata=definition_metadata(GOLDEN),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[
        _CANDIDATES_CONSERVED.spec,
        _ENOUGH_SEALED_ITEMS.spec,
        _QUOTAS_FILLED.spec,
    ],
)
@carries_checks
def golden_dataset(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    power_plan: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Frozen evaluation set with its sealed holdout; a new freeze adds a version, never edits one."""
    declared = migrations.of(context.partition_key)
    require_current(declared.migration, power_plan=power_plan)
    logged = calls_of(request_log, declared)
    golden, plan = declared.migration.golden, power_plan.facts["plan"]
    adversarial = declared_adversarial(context, declared)
    freezing = freeze(
        artifacts.read(logged),
        declared.migration,
        needed=math.ceil(plan["sealed_items"] / golden.holdout),
        adversarial=adversarial,
    )
    sealed = freezing.rows.filter(pl.col("split") == "sealed", pl.col("role") == "traffic")
    require_reachable(sealed.height, declared.migration)
    if contradicting := freezing.exclusions.get(AMBIGUOUS):
        context.log.warning("%s logged calls are left out: calls of one request id say different things", contradicting)
    certified = _certified(sealed, declared, baseline=plan["baseline"])
    manifest = artifacts.publish(
        GOLDEN,
        [freezing.rows],
        inputs={"request_log": logged.digest, **declared_input(declared.migration, "golden_dataset")},
        facts={"golden": freezing.facts | {"certifies": certified}},
    )
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={
            "sealed_items": sealed.height,
            "items_needed": certified["sealed_items_needed"],
            "certified_margin": certified["margin"],
            "strata": markdown_table(pl.DataFrame(freezing.facts["strata"])),
            "left_out": dg.MetadataValue.json(freezing.exclusions),
            "example": markdown_table(freezing.rows.select("id", "source_prompt", "ground_truth"), rows=3),
            "drawn": dg.MetadataValue.json({name: fact for name, fact in freezing.facts.items() if name != "strata"}),
        },
        params={"size": str(golden.size), "holdout": golden.holdout},
        metrics={"items": freezing.rows.height, "sealed_items": sealed.height, "certified_margin": certified["margin"]},
        checks=[
            _CANDIDATES_CONSERVED.result(
                passed=logged.rows + adversarial.height == freezing.rows.height + sum(freezing.exclusions.values()),
                found=f"{logged.rows + adversarial.height} calls = {freezing.rows.height} items + "
                f"{sum(freezing.exclusions.values())} left out",
            ),
            _enough_sealed_items(certified, declared),
            _quotas_filled(freezing),
        ],
    )


def declared_adversarial(context: dg.AssetExecutionContext, declared: Declared) -> pl.DataFrame:
    """Read the adversarial calls that the migration file names; lines that are none are told one by one."""
    rows = [REQUEST_LOG.empty()]
    if (sources := declared.migration.golden.adversarial) is not None:
        for batch in read_logs(list_files(sources, base=declared.folder), log_format="canonical"):
            rows.append(batch.rows)
            for file, line, reason in batch.rejected.select("source_file", "source_line", "reason").iter_rows():
                context.log.warning("%s, line %s is no adversarial call: %s", file, line, reason)
    return pl.concat(rows)


def _certified(sealed: pl.DataFrame, declared: Declared, *, baseline: float) -> dict[str, float]:
    """State the margin that the sealed items can certify at 80 % power, and what the declared one would need."""
    criteria = declared.migration.sign_off
    effect = design_effect(sealed)
    independent = items_for(margin=criteria.quality_margin, level=criteria.level, baseline=baseline)
    return {
        "margin": round(certified_margin(sealed, level=criteria.level, baseline=baseline), 6),
        "sealed_items": sealed.height,
        "sealed_items_needed": math.ceil(round(independent * effect, 6)),
        "design_effect": round(effect, 6),
        "baseline": baseline,
        "discordance": PLANNED_DISCORDANCE,
        "power": PLANNED_POWER,
        "level": criteria.level,
    }


def _enough_sealed_items(certified: dict[str, float], declared: Declared) -> dg.AssetCheckResult:
    return _ENOUGH_SEALED_ITEMS.result(
        passed=certified["sealed_items"] >= certified["sealed_items_needed"],
        found=f"{certified['sealed_items']} sealed items; {certified['sealed_items_needed']} are planned for a margin "
        f"of {declared.migration.sign_off.quality_margin:.1%} at 80 % power. "
        + (
            f"They can certify {certified['margin']:.1%} at that power"
            if certified["margin"] < 1
            else "They can certify no margin at that power"
        )
        + f" (legacy mean {certified['baseline']:.1%}, {certified['discordance']:.0%} of the items judged "
        f"differently, design effect {certified['design_effect']:.2f})",
    )


def _quotas_filled(freezing: Freeze) -> dg.AssetCheckResult:
    quotas = freezing.facts["quotas"]
    return _QUOTAS_FILLED.result(
        passed=all(each["drawn"] >= each["wanted"] for each in quotas.values()),
        found="; ".join(
            f"{role}: {each['drawn']} drawn, {each['wanted']} wanted, {each['found']} found beside the traffic's items"
            for role, each in quotas.items()
        ),
    )
