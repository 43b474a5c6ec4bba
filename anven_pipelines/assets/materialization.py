"""What every asset says about what it made: rows, digest, schema, MLflow run."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import dagster as dg
import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import StaleInput
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.domain.tracking import RegisteredPrompt, StepRecord, step_key, step_tags
from anven_pipelines.domain.workload import declared_digest, explain_stale
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.spec import Migration

MIGRATION = "migration"
OWNERS = ["team:llm-platform"]
DOCUMENT = Table("document", (Column("json", pl.String, "One JSON document, canonical."),))


Function = TypeVar("Function", bound=Callable[..., object])


def carries_checks(function: Function) -> Function:
    """Let an asset function return a value together with check results.

    Dagster 1.13 counts each check as an output and then refuses `MaterializeResult[Manifest]` as annotation, while
    bare `MaterializeResult` forbids a value; without an annotation it takes both.
    """
    function.__annotations__.pop("return", None)
    return function


def column_schema(table: Table) -> dg.TableSchema:
    """Describe a table's columns for the Dagster UI."""
    return dg.TableSchema(
        columns=[dg.TableColumn(column.name, str(column.dtype), column.description) for column in table.columns]
    )


def definition_metadata(table: Table) -> dict[str, Any]:
    """Return the metadata that an asset of this table carries before it is ever materialised."""
    return {"dagster/column_schema": column_schema(table)}


def publish_document(
    artifacts: ArtifactStore, json_text: str, *, inputs: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> Manifest:
    """Publish one JSON document as a table of one row, so that documents and tables travel alike."""
    return artifacts.publish(DOCUMENT, [pl.DataFrame({"json": [json_text]})], inputs=inputs, facts=facts or {})


def read_document(artifacts: ArtifactStore, manifest: Manifest) -> str:
    """Return the JSON text of a published document."""
    text: str = artifacts.read(manifest)["json"].item()
    return text


def declared_input(migration: Migration, asset: str) -> dict[str, str]:
    """Return what stands among an asset's inputs for the migration file."""
    return {MIGRATION: declared_digest(migration, asset)}


def require_current(migration: Migration, **manifests: Manifest) -> None:
    """Refuse an input, by asset, that was made before the migration file was changed in what decides it.

    Raises:
        StaleInput: one was; the verdict would speak of a target or a grading that nobody measured.
    """
    for asset, manifest in manifests.items():
        if stale := explain_stale(migration, asset, manifest.inputs.get(MIGRATION)):
            raise StaleInput(stale)


def result(  # noqa: PLR0913 - one keyword per thing that the UI and MLflow show
    context: dg.AssetExecutionContext,
    manifest: Manifest,
    *,
    tracking: MlflowTracking,
    metadata: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float | None] | None = None,
    documents: Mapping[str, str] | None = None,
    prompts: Sequence[RegisteredPrompt] = (),
    checks: Sequence[dg.AssetCheckResult] = (),
    tags: Mapping[str, str] | None = None,
    asset: str | None = None,
) -> dg.MaterializeResult[Manifest]:
    """Track the step in MLflow and return what Dagster shows of it."""
    key = dg.AssetKey(asset) if asset else context.asset_key
    tracked = tracking.record(
        _step_record(
            context,
            key,
            manifest,
            params=params or {},
            metrics=metrics or {},
            documents=documents or {},
            prompts=prompts,
        )
    )
    if tracked.warning:
        context.log.warning(tracked.warning)
    return dg.MaterializeResult(
        asset_key=key,
        value=manifest,
        data_version=dg.DataVersion(manifest.digest),
        check_results=list(checks),
        tags=tags,
        metadata={
            **(metadata or {}),
            **tracked.metadata(),
            "dagster/row_count": manifest.rows,
            "digest": manifest.digest,
            "parts": len(manifest.parts),
            "bytes": sum(part.bytes for part in manifest.parts),
            **_made_from(manifest),
        },
    )


def _made_from(manifest: Manifest) -> dict[str, str]:
    """Name the inputs by the start of their digests; the manifest and MLflow keep them whole."""
    named = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(manifest.inputs.items()))
    return {"made_from": named} if named else {}


def markdown_table(frame: pl.DataFrame, *, rows: int = 50, longest: int = 120) -> dg.MarkdownMetadataValue:
    """Show the first rows of a frame as a Markdown table; texts are cut after so many characters."""
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=rows,
        tbl_cols=-1,
        fmt_str_lengths=longest,
        tbl_width_chars=10_000,
    ):
        # A bar, or a line's end, of what somebody wrote would end the cell.
        cells = pl.col(pl.String).str.replace_all("|", "\\|", literal=True).str.replace_all("\n", " ", literal=True)
        return dg.MetadataValue.md(str(frame.head(rows).with_columns(cells)))


def _step_record(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    manifest: Manifest,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    documents: Mapping[str, str],
    prompts: Sequence[RegisteredPrompt],
) -> StepRecord:
    asset = key.to_user_string()
    partition = context.partition_key if context.has_partition_key else None
    workload = partition if _is_workload(context) else None
    golden = manifest.digest if asset == "golden_dataset" else manifest.inputs.get("golden_dataset")
    tags = step_tags(
        run_id=context.run.run_id,
        asset=asset,
        workload=workload,
        dataset_digest=golden,
        code_version=context.assets_def.code_versions_by_key.get(key),
    )
    return StepRecord(
        key=step_key(run_id=context.run.run_id, asset=asset, partition=partition, attempt=context.retry_number),
        experiment=f"anven/{workload}" if workload else "anven/request-logs",
        name=asset,
        started=_step_start(context),
        ended=datetime.now(UTC),
        status="FINISHED",
        tags={**tags, "digest": manifest.digest, **({"partition": partition} if partition else {})},
        params=dict(params),
        metrics={**metrics, "rows": float(manifest.rows)},
        documents={"manifest.json": canonical_json(manifest.model_dump(mode="json")), **documents},
        prompts=list(prompts),
    )


def _is_workload(context: dg.AssetExecutionContext) -> bool:
    definition = context.assets_def.partitions_def
    return isinstance(definition, dg.DynamicPartitionsDefinition) and definition.name == "workload"


def _step_start(context: dg.AssetExecutionContext) -> datetime:
    stats = context.instance.get_run_step_stats(context.run.run_id, [context.get_step_execution_context().step.key])
    started = stats[0].start_time if stats else None
    return datetime.fromtimestamp(started, UTC) if started else datetime.now(UTC)
