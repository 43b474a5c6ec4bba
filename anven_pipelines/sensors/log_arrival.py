"""New migration files become workload partitions; new log files become log days to read."""

from typing import NamedTuple

import dagster as dg

from anven_pipelines.assets.partitions import log_days, workloads
from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.ingest.log_source import file_version, readable_sources
from anven_pipelines.resources.migrations import Migrations

request_log_job = dg.define_asset_job(
    "request_log_job",
    selection=dg.AssetSelection.assets("request_log", "rejected_lines"),
    description="Reads the log files of one day.",
)


class DeclaredKeys(NamedTuple):
    """The partitions that the migration files declare, and what of the files and their sources cannot be read."""

    workloads: list[str]
    days: list[str]
    problems: list[str]


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Adds a partition for each workload that a migration file declares and for each day of its logs. It "
    "launches nothing and removes none; a file that cannot be read is named in the tick.",
)
def declared_partitions(migrations: Migrations) -> dg.SensorResult:
    """Add the partitions that the migration files declare; it removes none and launches nothing."""
    keys = declared_keys(migrations)
    message = f"{len(keys.workloads)} workloads, {len(keys.days)} log days"
    return dg.SensorResult(
        skip_reason=dg.SkipReason("\n".join([message, *keys.problems])),
        dynamic_partitions_requests=[
            workloads.build_add_request(keys.workloads),
            log_days.build_add_request(keys.days),
        ],
    )


@dg.sensor(
    job=request_log_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Reads a log day whenever one of its files is new or has changed. Turn it on where logs keep arriving.",
)
def log_arrival(context: dg.SensorEvaluationContext, migrations: Migrations) -> dg.SensorResult:
    """Read a log day whenever one of its files is new or has changed; what cannot be read is told and left alone."""
    catalogue = migrations.catalogue()
    sources, unreadable = readable_sources(
        [(each.migration.legacy, each.folder) for each in catalogue.declared.values()]
    )
    for problem in (*catalogue.broken.values(), *unreadable.values()):
        context.log.warning(problem)
    by_day: dict[str, list[list[str]]] = {}
    for source in sources:
        for file in source.files:
            by_day.setdefault(file.day, []).append([file.url, file_version(file)])
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"{day}/{digest_of(sorted(files))[:16]}", partition_key=day)
            for day, files in sorted(by_day.items())
        ],
        dynamic_partitions_requests=[log_days.build_add_request(sorted(by_day))],
    )


def declared_keys(migrations: Migrations) -> DeclaredKeys:
    """List what the migration files declare."""
    catalogue = migrations.catalogue()
    sources, unreadable = readable_sources(
        [(each.migration.legacy, each.folder) for each in catalogue.declared.values()]
    )
    days = sorted({file.day for source in sources for file in source.files})
    return DeclaredKeys(sorted(catalogue.declared), days, [*catalogue.broken.values(), *unreadable.values()])
