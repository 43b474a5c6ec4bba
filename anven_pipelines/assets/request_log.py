"""Legacy request logs, read into the canonical table; bad lines are kept apart, never dropped."""

from collections.abc import Iterator
from dataclasses import asdict

import dagster as dg
import polars as pl

from anven_pipelines.assets.check import Check
from anven_pipelines.assets.materialization import (
    OWNERS,
    carries_checks,
    definition_metadata,
    markdown_table,
    result,
)
from anven_pipelines.assets.partitions import log_days
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.request_log import REJECTED_LINES, REJECTED_SHARE_TO_WARN, REQUEST_LOG, LineCount
from anven_pipelines.ingest.log_source import LogSource, readable_sources
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.resources.artifact_store import ArtifactStore, LabelledFrame
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

_LINES_CONSERVED = Check(
    "request_log",
    "lines_conserved",
    "Lines read are rows, rejected lines or exact duplicates: none is lost.",
    blocking=True,
)
_SOURCES_READABLE = Check(
    "request_log", "sources_readable", "Every declared log source and every migration file can be read."
)
_FEW_REJECTED = Check(
    "rejected_lines", "few_rejected", f"At most {REJECTED_SHARE_TO_WARN:.0%} of the lines are rejected."
)


@dg.multi_asset(
    outs={
        "request_log": dg.AssetOut(
            group_name="assess",
            kinds={"parquet", "duckdb"},
            owners=OWNERS,
            code_version="1",
            metadata=definition_metadata(REQUEST_LOG),
            description="One row per logged call of every workload, from the log files of one day.",
        ),
        "rejected_lines": dg.AssetOut(
            group_name="assess",
            kinds={"parquet"},
            owners=OWNERS,
            code_version="1",
            metadata=definition_metadata(REJECTED_LINES),
            description="Lines that are not a logged call, with reason, file, line and bytes.",
        ),
    },
    partitions_def=log_days,
    check_specs=[
        _LINES_CONSERVED.spec,
        _SOURCES_READABLE.spec,
        _FEW_REJECTED.spec,
    ],
)
@carries_checks
def request_log(
    context: dg.AssetExecutionContext, migrations: Migrations, artifacts: ArtifactStore, tracking: MlflowTracking
) -> Iterator[dg.MaterializeResult[Manifest]]:
    """Read the day's files of every declared source, each source once."""
    catalogue = migrations.catalogue()
    sources, unreadable = readable_sources(
        [(each.migration.legacy, each.folder) for each in catalogue.declared.values()]
    )
    reading = _Reading()
    rows = artifacts.publish(REQUEST_LOG, reading.frames(sources, day=context.partition_key, log=context.log))
    rejected = artifacts.publish(REJECTED_LINES, reading.rejected)
    if reading.count.rejected:
        context.log.warning(_first_rejected(reading))
    count, rejected_share = reading.count, reading.count.rejected / max(reading.count.read, 1)
    yield result(
        context,
        rows,
        asset="request_log",
        tracking=tracking,
        metadata={"lines": dg.MetadataValue.json(asdict(count)), "files": dg.MetadataValue.json(reading.files)},
        params={"files": len(reading.files)},
        metrics={"lines_read": count.read, "lines_rejected": count.rejected, "duplicates": count.duplicates},
        checks=[
            _LINES_CONSERVED.result(
                passed=rows.rows == reading.rows and rejected.rows == count.rejected,
                found=f"{count.read} lines read = {count.accepted} accepted + {count.rejected} rejected "
                f"+ {count.duplicates} exact duplicates; {rows.rows} rows published of {reading.rows} read",
            ),
            _SOURCES_READABLE.result(
                passed=not unreadable and not catalogue.broken,
                found="\n".join([*unreadable.values(), *catalogue.broken.values()]) or "every source can be read",
            ),
        ],
    )
    yield result(
        context,
        rejected,
        asset="rejected_lines",
        tracking=tracking,
        metadata={"reasons": markdown_table(_reasons(reading.rejected))},
        metrics={"rejected_share": rejected_share},
        checks=[
            _FEW_REJECTED.result(
                passed=rejected_share <= REJECTED_SHARE_TO_WARN,
                found=f"{count.rejected} of {count.read} lines rejected ({rejected_share:.2%})",
            )
        ],
    )


class _Reading:
    """Streams batches through and keeps what is small: counts, rejected lines, file names."""

    def __init__(self) -> None:
        self.count = LineCount()
        self.rows = 0
        self.rejected: list[pl.DataFrame] = []
        self.files: list[str] = []

    def frames(self, sources: list[LogSource], *, day: str, log: dg.DagsterLogManager) -> Iterator[LabelledFrame]:
        for source in sources:
            files = [file for file in source.files if file.day == day]
            self.files += [file.name for file in files]
            for batch in read_logs(files, log_format=source.log_format):
                self.count += batch.count
                self.rows += batch.rows.height
                self.rejected.append(batch.rejected)
                log.info("%s lines read, %s rejected", self.count.read, self.count.rejected)
                yield LabelledFrame(batch.rows, {"source": source.key})


def _first_rejected(reading: _Reading) -> str:
    first = next(lines for lines in reading.rejected if lines.height).row(0, named=True)
    return (
        f"{reading.count.rejected} of {reading.count.read} lines are no logged call and are kept in rejected_lines; "
        f"the first: {first['source_file']}, line {first['source_line']}: {first['reason']}"
    )


def _reasons(rejected: list[pl.DataFrame]) -> pl.DataFrame:
    lines = pl.concat(rejected) if rejected else REJECTED_LINES.empty()
    return (
        lines.group_by("reason")
        .agg(lines=pl.len(), example=pl.col("source_file").first())
        .sort("lines", descending=True)
    )
