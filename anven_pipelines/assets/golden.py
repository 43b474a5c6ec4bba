"""The frozen evaluation set of a workload."""

import math
from typing import NamedTuple

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
    result,
)
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.drift import traffic_until
from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.golden import AMBIGUOUS, GOLDEN, Freeze, freeze
from anven_pipelines.domain.ground_truth import LABELLED, Truths, agreed_labels, labels_stream, with_truths
from anven_pipelines.domain.holdout import HOLDOUT_WAIVER, draw_key, require_sealed
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.noise_floor import noise_floor
from anven_pipelines.domain.power import items_for
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
_VERDICT_IS_CURRENT = Check(
    "golden_dataset", "verdict_is_current", "No ground truth that the latest verdict used has changed since."
)


@dg.asset(
    group_name="golden",
    kinds={"parquet", "duckdb"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(GOLDEN),
    ins={"request_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    check_specs=[
        _CANDIDATES_CONSERVED.spec,
        _ENOUGH_SEALED_ITEMS.spec,
        _VERDICT_IS_CURRENT.spec,
    ],
)
@carries_checks
def golden_dataset(
    context: dg.AssetExecutionContext,
    request_log: dict[str, Manifest],
    migrations: Migrations,
    artifacts: ArtifactStore,
    state: StateStore,
    tracking: MlflowTracking,
) -> dg.MaterializeResult[Manifest]:
    """Frozen evaluation set with its sealed holdout; a new freeze adds a version, never edits one."""
    declared = migrations.of(context.partition_key)
    logged = calls_of(request_log, declared)
    criteria = declared.migration.sign_off
    needed = items_for(margin=criteria.quality_margin, level=criteria.level)
    golden = declared.migration.golden
    frozen = (
        _pinned(golden.version, declared, artifacts)
        if golden.version
        else _drawn(declared, logged, needed, state, artifacts)
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
    sealed = int((freezing.rows["split"] == "sealed").sum())
    return result(
        context,
        frozen.manifest,
        tracking=tracking,
        metadata={
            "sealed_items": sealed,
            "items_needed": needed,
            "burnt_conversations": frozen.burnt,
            "noise_floor": (frozen.manifest.facts.get("noise_floor") or {}).get("reason", "not measured"),
            "strata": markdown_table(pl.DataFrame(freezing.facts["strata"])),
            "left_out": dg.MetadataValue.json(freezing.exclusions),
            "example": markdown_table(freezing.rows.select("id", "source_prompt", "ground_truth"), rows=3),
            "drawn": dg.MetadataValue.json({name: fact for name, fact in freezing.facts.items() if name != "strata"}),
        },
        params={"size": str(golden.size), "holdout": golden.holdout},
        metrics={"items": freezing.rows.height, "sealed_items": sealed},
        checks=[
            _CANDIDATES_CONSERVED.result(
                passed=frozen.candidates == freezing.rows.height + sum(freezing.exclusions.values()),
                found=f"{frozen.candidates} candidates = {freezing.rows.height} items + "
                f"{sum(freezing.exclusions.values())} left out",
            ),
            _ENOUGH_SEALED_ITEMS.result(
                passed=sealed >= needed,
                found=f"{sealed} sealed items; {needed} are planned for a margin of "
                f"{criteria.quality_margin:.1%} at 80 % power",
            ),
            _verdict_is_current(context.partition_key, freezing.rows, state, artifacts),
        ],
    )


class _Frozen(NamedTuple):
    """A version and how it came about."""

    manifest: Manifest
    freezing: Freeze
    candidates: int
    burnt: int
    disputed: tuple[str, ...] = ()


def _drawn(declared: Declared, logged: Manifest, needed: int, state: StateStore, artifacts: ArtifactStore) -> _Frozen:
    """Draw a version from the logged calls; it seals nothing that a failed sign-off has looked at."""
    migration, truths = declared.migration, _truths(declared, state)
    drawn_from = {"request_log": logged.digest, **({"ground_truth": truths.digest} if truths else {})}
    draw = draw_key(migration, drawn_from)
    waived = HOLDOUT_WAIVER in migration.sign_off.waive
    burnt = frozenset[str]() if waived else ledger_of(migration.workload, state, artifacts).burnt_before(draw)
    calls = with_truths(artifacts.read(logged), truths) if truths else artifacts.read(logged)
    freezing = freeze(calls, migration, needed=math.ceil(needed / migration.golden.holdout), burnt=burnt)
    require_sealed(freezing.rows, burnt, migration)
    manifest = artifacts.publish(
        GOLDEN,
        [freezing.rows],
        inputs={**drawn_from, "draw": draw, **declared_input(migration, "golden_dataset")},
        facts={
            "golden": freezing.facts,
            "noise_floor": noise_floor(calls, migration).to_json(),
            "traffic_until": traffic_until(calls),
        },
    )
    return _Frozen(manifest, freezing, logged.rows, len(burnt), truths.disputed if truths else ())


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
    inputs = {"draw": draw_key(migration, {}), **declared_input(migration, "golden_dataset")}
    freezing = Freeze(rows=rows, exclusions={}, candidates=rows.height, facts={"strata": [], "version": version})
    return _Frozen(stored.model_copy(update={"inputs": inputs}), freezing, rows.height, 0)


def _truths(declared: Declared, state: StateStore) -> Truths | None:
    """Return the ground truths in place of the log's; None where the log's count."""
    truth = declared.migration.golden.ground_truth
    if truth.file is not None:
        return read_truth_file(truth.file, base=declared.folder)
    if truth.source == "labels":
        return agreed_labels(state.events(labels_stream(declared.migration.workload), LABELLED))
    return None


def _verdict_is_current(
    workload: str, rows: pl.DataFrame, state: StateStore, artifacts: ArtifactStore
) -> dg.AssetCheckResult:
    stale = stale_verdict(workload, rows, state, artifacts)
    return _VERDICT_IS_CURRENT.result(
        passed=stale is None, found=stale or "no verdict rests on a ground truth that has changed since"
    )
