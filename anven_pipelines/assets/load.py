"""How much traffic the served target bears."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from anven_pipelines.assets.charts import load_chart
from anven_pipelines.assets.check import Check
from anven_pipelines.assets.holdout import record_shown
from anven_pipelines.assets.logged_calls import calls_of
from anven_pipelines.assets.materialization import (
    OWNERS,
    carries_checks,
    declared_input,
    definition_metadata,
    markdown_table,
    read_document,
    require_current,
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.arrivals import FloatArray
from anven_pipelines.domain.capacity import demand_of
from anven_pipelines.domain.completion import without_secrets
from anven_pipelines.domain.load import LOAD_REQUESTS, RateFigures, figures_of, judged
from anven_pipelines.domain.load_plan import CALLS_SQL, LoadArm, LoadPlan, load_arms, logged_calls, next_plan, warm_up
from anven_pipelines.domain.load_reach import shortfall
from anven_pipelines.domain.load_report import (
    ArmFound,
    LoadReport,
    judged_rows,
    report_of,
    rung,
    unmeasured,
    why_not,
)
from anven_pipelines.domain.manifest import Manifest, require_same
from anven_pipelines.domain.prompts import AdaptedPrompt
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.load_driver import LoadDriver
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec import Migration
from anven_pipelines.spec_load import Load

_LOAD_MEASURED = Check(
    "load_benchmark",
    "load_measured",
    "The target was put under load, and a rate at which it keeps the service level is proven.",
)
_BEARS_THE_PEAK = Check(
    "load_benchmark",
    "bears_the_peak",
    "The target as it is served now is proven to bear the log's busiest minute; measured, not assumed.",
)


@dg.asset(
    group_name="infer",
    kinds={"litellm", "parquet"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(LOAD_REQUESTS),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[_LOAD_MEASURED.spec, _BEARS_THE_PEAK.spec],
)
@carries_checks
def load_benchmark(  # noqa: PLR0913, PLR0917 - Dagster gives an asset its inputs and resources as arguments
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    golden_dataset: Manifest,
    adapted_prompt: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    load_driver: LoadDriver,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """The served target under rising load, with the workload's own prompts: how fast it is, and where it saturates.

    Only open items are sent; as their times are told here, they count as shown.
    """
    require_same("golden_dataset", adapted_prompt, current=golden_dataset)
    declared = migrations.of(context.partition_key)
    migration = declared.migration
    require_current(migration, golden_dataset=golden_dataset, adapted_prompt=adapted_prompt)
    prompt = AdaptedPrompt.model_validate_json(read_document(artifacts, adapted_prompt))
    arms = load_arms(migration, artifacts.read(golden_dataset), prompt)
    reason = why_not(migration, arms)
    if migration.load is None or reason is not None:
        found, report = LOAD_REQUESTS.empty(), unmeasured(migration, reason or "")
    else:
        if (short := shortfall(migration.load)) is not None:
            context.log.warning(short)
        record_shown(golden_dataset, context.partition_key, state)
        calls = artifacts.query(CALLS_SQL, request_log=calls_of(request_log, declared))
        times = logged_calls(calls, migration.legacy)
        driven = _drive(context, load_driver, arms, migration.load, trace=times)
        found = judged_rows(driven, migration.load)
        report = report_of(migration, migration.load, driven, demand_of(times))
    inputs = {
        "golden_dataset": golden_dataset.digest,
        "adapted_prompt": adapted_prompt.digest,
        **declared_input(migration, "load_benchmark"),
    }
    document = report.model_dump_json(indent=2)
    return result(
        context,
        artifacts.publish(LOAD_REQUESTS, [found], inputs=inputs, facts={"load": report.model_dump(mode="json")}),
        tracking=tracking,
        metadata=_metadata(report, migration),
        params=_params(arms, migration.load),
        metrics=_metrics(report),
        documents={"load.json": document},
        checks=[
            _LOAD_MEASURED.result(passed=report.target.sustained_rate is not None, found=report.message),
            _bears_the_peak(report),
        ],
    )


def _drive(
    context: dg.AssetExecutionContext, driver: LoadDriver, arms: list[LoadArm], load: Load, *, trace: FloatArray
) -> list[ArmFound]:
    """Put one server after the other under load; the legacy one at no rate that the target was not asked."""
    found: list[ArmFound] = []
    for arm in arms:
        highest = {"highest": max(rows["rate"][0] for rows in found[0].rows)} if found else {}
        driven = driver.drive(
            arm.server,
            arm=arm.name,
            warm_up=warm_up(load, arm),
            next_plan=partial(_next_plan, context, load, arm, trace=trace, **highest),
            cap=load.max_in_flight,
            tell=context.log.info,
        )
        found.append(ArmFound(arm.name, driven.rows, driven.silent))
        if not found[0].rows:
            break  # nothing to compare with, and the legacy model is paid for
    return found


def _next_plan(
    context: dg.AssetExecutionContext,
    load: Load,
    arm: LoadArm,
    done: Sequence[pl.DataFrame],
    *,
    trace: FloatArray,
    highest: float = math.inf,
) -> LoadPlan | None:
    """Tell how the rate that has ended went, while nothing is in flight, and return the next one."""
    if done:
        seconds = load.duration.total_seconds()
        context.log.info(rung(figures_of(judged(done[-1], load.slo), load.slo, seconds=seconds)))
    return next_plan(load, arm, done, trace=trace, highest=highest)


def _bears_the_peak(report: LoadReport) -> dg.AssetCheckResult:
    peak = report.capacity.demand.peak_rate if report.capacity else None
    sustained = report.target.sustained_rate
    if sustained is None or peak is None:
        unknown = report.target.reason if sustained is None else "the log is too short to have a busiest minute"
        return _BEARS_THE_PEAK.result(passed=False, found=f"not measured: {unknown.removeprefix('not measured: ')}")
    said = f"{sustained:g}/s are sustained, the busiest minute has {peak:.3g}/s"
    return _BEARS_THE_PEAK.result(passed=sustained >= peak, found=said)


def _metadata(report: LoadReport, migration: Migration) -> Mapping[str, Any]:
    if migration.load is None or not report.figures:
        return {"status": report.message}
    capacity = report.capacity.model_dump(mode="json") if report.capacity else {}
    return {
        "status": report.message,
        "rates": markdown_table(pl.DataFrame([_shown(each) for each in report.figures])),
        "judgements": dg.MetadataValue.json(
            {f"{each.arm} at {each.rate:g}/s": f"{each.judgement}: {each.reason}" for each in report.figures}
        ),
        "chart": load_chart(report, migration.load.slo),
        "compared": dg.MetadataValue.json([each.model_dump(mode="json") for each in report.compared]),
        "capacity": dg.MetadataValue.json(capacity),
        "slo": dg.MetadataValue.json(migration.load.slo.model_dump(mode="json", exclude_none=True)),
    }


def _shown(each: RateFigures) -> dict[str, Any]:
    """Return a row of the table for a reader; what was not measured says so."""
    within = each.within
    return {
        "arm": each.arm,
        "rate /s": f"{each.rate:g}",
        "offered /s": _number(each.offered_rate),
        "answered in time /s": _number(each.achieved_rate),
        "goodput /s": _number(each.goodput),
        "requests": each.requests,
        "prompts": each.prompts,
        "errors": f"{each.error_share:.1%}",
        "within limits": "unknown"
        if within is None
        else f"{within.estimate:.1%} [{within.lower:.1%}, {within.upper:.1%}]",
        **{
            f"{words} p{at}, ms": _number(getattr(times, f"p{at}"))
            for words, times in (
                ("TTFT", each.ttft_ms),
                ("per token", each.inter_token_ms),
                ("latency", each.latency_ms),
            )
            for at in (50, 95, 99)
        },
        "longest gap p95, ms": _number(each.longest_gap_ms.p95),
        "sent late": each.late,
        "judgement": each.judgement,
    }


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}"


def _params(arms: list[LoadArm], load: Load | None) -> dict[str, Any]:
    servers = {f"{arm.name}_{name}": value for arm in arms for name, value in _server(arm).items()}
    if load is None:
        return servers
    return {**servers, **load.model_dump(mode="json", include={"rates", "duration", "arrivals", "seed", "timeout"})}


def _server(arm: LoadArm) -> dict[str, str]:
    return {"model": arm.server.model, "url": without_secrets(arm.server.url, secrets=())}


def _metrics(report: LoadReport) -> dict[str, float | None]:
    capacity = report.capacity
    sustained = next(
        (each for each in report.figures if each.arm == "target" and each.rate == report.target.sustained_rate), None
    )
    return {
        "target_sustained_rate": report.target.sustained_rate,
        "target_goodput": report.target.goodput,
        "target_ttft_p95_ms": sustained.ttft_ms.p95 if sustained else None,
        "target_inter_token_p95_ms": sustained.inter_token_ms.p95 if sustained else None,
        "legacy_sustained_rate": report.legacy.sustained_rate if report.legacy else None,
        "rate_per_replica": capacity.rate_per_replica if capacity else None,
        "replicas_for_peak": capacity.replicas_for_peak if capacity else None,
        "usd_per_1000_full": capacity.usd_per_1000_full if capacity else None,
        "usd_per_1000_logged": capacity.usd_per_1000_logged if capacity else None,
    }
