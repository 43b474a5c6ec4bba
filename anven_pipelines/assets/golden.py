"""The frozen evaluation set of a workload."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.holdout import ledger_of, stale_verdict
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
from anven_pipelines.domain.candidates import AMBIGUOUS, traffic_strata
from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.drift import traffic_until
from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.evaluation import TRAFFIC
from anven_pipelines.domain.golden import GOLDEN, NOTHING_SEEN, Freeze, freeze, opened
from anven_pipelines.domain.ground_truth import LABELLED, Truths, agreed_labels, labels_stream, with_truths
from anven_pipelines.domain.holdout import HOLDOUT_WAIVER, draw_key, require_sealed
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.noise_floor import noise_floor
from anven_pipelines.domain.power import (
    PLANNED_DISCORDANCE,
    PLANNED_POWER,
    certified_margin,
    design_effect,
    items_like,
    require_reachable,
)
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.ingest.truth_file import read_truth_file
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Declared, Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.state_store import StateStore

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
_EVERY_STRATUM_SEALED = Check(
    "golden_dataset", "every_stratum_sealed", "Every stratum to which a sealed item falls by its size has one."
)
_VERDICT_IS_CURRENT = Check(
    "golden_dataset", "verdict_is_current", "No ground truth that the latest verdict used has changed since."
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
        _EVERY_STRATUM_SEALED.spec,
        _QUOTAS_FILLED.spec,
        _VERDICT_IS_CURRENT.spec,
    ],
)
@carries_checks
def golden_dataset(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    power_plan: Manifest,
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Frozen evaluation set with its sealed holdout; a new freeze adds a version, never edits one."""
    declared = migrations.of(context.partition_key)
    require_current(declared.migration, power_plan=power_plan)
    logged = calls_of(request_log, declared)
    golden, plan = declared.migration.golden, power_plan.facts["plan"]
    frozen = (
        _pinned(golden.version, declared, artifacts)
        if golden.version
        else _drawn(declared, logged, plan, declared_adversarial(context, declared), state, artifacts)
    )
    freezing = frozen.freezing
    if contradicting := freezing.exclusions.get(AMBIGUOUS):
        context.log.warning("%s logged calls are left out: calls of one request id say different things", contradicting)
    if frozen.disputed:
        context.log.warning(
            "%s items have no truth, as people label them differently: %s ...",
            len(frozen.disputed),
            ", ".join(frozen.disputed[:5]),
        )
    sealed = _sealed_traffic(freezing.rows)
    certified = _certified(sealed, declared, baseline=plan["baseline"])
    return result(
        context,
        frozen.manifest,
        tracking=tracking,
        metadata={
            "sealed_items": sealed.height,
            "items_needed": certified["sealed_items_needed"],
            "certified_margin": certified["margin"],
            "seen_before": freezing.seen,
            "noise_floor": (frozen.manifest.facts.get("noise_floor") or {}).get("reason", "not measured"),
            "strata": markdown_table(pl.DataFrame(freezing.facts["strata"])),
            "left_out": dg.MetadataValue.json(freezing.exclusions),
            "example": markdown_table(opened(freezing.rows).select("id", "source_prompt", "ground_truth"), rows=3),
            "drawn": dg.MetadataValue.json({name: fact for name, fact in freezing.facts.items() if name != "strata"}),
        },
        params={"size": str(golden.size), "holdout": freezing.facts.get("holdout", golden.holdout)},
        metrics={"items": freezing.rows.height, "sealed_items": sealed.height, "certified_margin": certified["margin"]},
        checks=[
            _candidates_conserved(frozen),
            _enough_sealed_items(certified, declared),
            every_stratum_sealed(freezing),
            _quotas_filled(freezing),
            _verdict_is_current(context.partition_key, freezing.rows, state, artifacts),
        ],
    )


class _Frozen(NamedTuple):
    """A version and how it came about.

    Attributes:
        manifest: Of the version.
        freezing: Its rows and what became of the rest.
        candidates: Calls that there were to draw from; None where the version was taken over as it stands.
        disputed: Items that people label differently.
    """

    manifest: Manifest
    freezing: Freeze
    candidates: int | None
    disputed: tuple[str, ...] = ()


def _drawn(
    declared: Declared,
    logged: Manifest,
    plan: Mapping[str, Any],
    adversarial: pl.DataFrame,
    state: StateStore,
    artifacts: ArtifactStore,
) -> _Frozen:
    """Draw a version from the logged calls; it seals nothing that was opened or stood open before."""
    migration, truths = declared.migration, declared_truths(declared, state)
    drawn_from = {
        "request_log": logged.digest,
        **({"ground_truth": truths.digest} if truths else {}),
        **({"adversarial": digest_of(adversarial.write_ndjson())} if adversarial.height else {}),
    }
    draw = draw_key(migration, drawn_from)
    waived = HOLDOUT_WAIVER in migration.sign_off.waive
    calls = with_truths(artifacts.read(logged), truths) if truths else artifacts.read(logged)
    items = calls.select(id="request_id", source_prompt="messages")
    seen = NOTHING_SEEN if waived else ledger_of(migration.workload, state, artifacts, items=items).seen_before(draw)
    freezing = freeze(
        calls,
        migration,
        needed=math.ceil(plan["sealed_items"] / migration.golden.holdout),
        baseline=plan["baseline"],
        seen=seen,
        adversarial=adversarial,
    )
    require_sealed(freezing.rows, migration)
    sealed = _sealed_traffic(freezing.rows)
    require_reachable(sealed, migration)
    manifest = artifacts.publish(
        GOLDEN,
        [freezing.rows],
        inputs={**drawn_from, "draw": draw, **declared_input(migration, "golden_dataset")},
        facts={
            "golden": freezing.facts | {"certifies": _certified(sealed, declared, baseline=plan["baseline"])},
            "noise_floor": noise_floor(calls, migration).to_json(),
            "traffic_until": traffic_until(calls),
            "traffic": traffic_strata(calls, migration),
        },
    )
    return _Frozen(manifest, freezing, logged.rows + adversarial.height, truths.disputed if truths else ())


def _pinned(version: str, declared: Declared, artifacts: ArtifactStore) -> _Frozen:
    """Take the version that the migration file names, such as an imported one.

    Raises:
        MissingInput: the workload never had it.
    """
    migration = declared.migration
    stored = artifacts.load_manifest("golden_dataset", migration.workload, digest=version)
    if stored is None:
        message = (
            f"{declared.file}: golden.version {version} is no version of {migration.workload!r} in {artifacts.url}; "
            "`anven golden import` prints the one it makes"
        )
        raise MissingInput(message)
    rows = artifacts.read(stored)
    require_reachable(_sealed_traffic(rows), migration)
    inputs = {"draw": draw_key(migration, {}), **declared_input(migration, "golden_dataset")}
    freezing = Freeze(rows=rows, exclusions={}, candidates=rows.height, facts={"strata": [], "version": version})
    return _Frozen(stored.model_copy(update={"inputs": inputs}), freezing, None)


def declared_truths(declared: Declared, state: StateStore) -> Truths | None:
    """Return the ground truths in place of the log's; None where the log's count."""
    truth = declared.migration.golden.ground_truth
    if truth.file is not None:
        return read_truth_file(truth.file, base=declared.folder)
    if truth.source == "labels":
        return agreed_labels(state.events(labels_stream(declared.migration.workload), LABELLED))
    return None


def _candidates_conserved(frozen: _Frozen) -> dg.AssetCheckResult:
    """Compare with what went in: the calls of a draw, or the rows that a version had when it was frozen."""
    rows, left_out = frozen.freezing.rows.height, sum(frozen.freezing.exclusions.values())
    if frozen.candidates is None:
        return _CANDIDATES_CONSERVED.result(
            passed=frozen.manifest.rows == rows,
            found=f"nothing was drawn: golden.version names a frozen version of {frozen.manifest.rows} items, and "
            f"{rows} were read",
        )
    return _CANDIDATES_CONSERVED.result(
        passed=frozen.candidates == rows + left_out,
        found=f"{frozen.candidates} calls = {rows} items + {left_out} left out",
    )


def every_stratum_sealed(freezing: Freeze) -> dg.AssetCheckResult:
    """Name the strata that a verdict cannot speak for."""
    without = freezing.facts.get("strata_without_sealed", [])
    return _EVERY_STRATUM_SEALED.result(
        passed=not without,
        found=f"the verdict will not speak for {', '.join(without)}: every item there was opened or stood open before, "
        "so none is sealed; add logs"
        if without
        else "every stratum that is large enough has a sealed item",
    )


def _verdict_is_current(
    workload: str, rows: pl.DataFrame, state: StateStore, artifacts: ArtifactStore
) -> dg.AssetCheckResult:
    stale = stale_verdict(workload, rows, state, artifacts)
    return _VERDICT_IS_CURRENT.result(
        passed=stale is None, found=stale or "no verdict rests on a ground truth that has changed since"
    )


def _sealed_traffic(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the sealed items that stand for the traffic: those that the verdict's estimate rests on."""
    return rows.filter(pl.col("split") == "sealed", pl.col("role") == TRAFFIC)


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
    return {
        "margin": round(certified_margin(sealed, criteria, baseline=baseline), 6),
        "sealed_items": sealed.height,
        "sealed_items_needed": items_like(sealed, criteria, baseline=baseline),
        "design_effect": round(design_effect(sealed), 6),
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
        f"differently, design effect {certified['design_effect']:.2f})"
        + (
            ""
            if certified["sealed_items"] >= certified["sealed_items_needed"]
            else "; add logs, raise golden.size or golden.holdout, or widen sign_off.quality_margin"
        ),
    )


def _quotas_filled(freezing: Freeze) -> dg.AssetCheckResult:
    quotas = freezing.facts.get("quotas", {})
    return _QUOTAS_FILLED.result(
        passed=all(each["drawn"] >= each["wanted"] for each in quotas.values()),
        found="; ".join(
            f"{role}: {each['drawn']} drawn, {each['wanted']} wanted, {each['found']} found beside the traffic's items"
            for role, each in quotas.items()
        ),
    )
