"""New migration files become workload partitions; new log files become log days to read."""

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


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def declared_partitions(migrations: Migrations) -> dg.SensorResult:
    """Keep the partitions equal to what the migration files declare; it launches nothing."""
    workload_names, days, problems = declared_keys(migrations)
    message = f"{len(workload_names)} workloads, {len(days)} log days"
    return dg.SensorResult(
        skip_reason=dg.SkipReason("\n".join([message, *problems])),
        dynamic_partitions_requests=[workloads.build_add_request(workload_names), log_days.build_add_request(days)],
    )


@dg.sensor(job=request_log_job, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def log_arrival(migrations: Migrations) -> dg.SensorResult:
    """Read a log day whenever one of its files is new or has changed."""
    declared = migrations.catalogue().declared.values()
    sources, _ = readable_sources([(each.migration.legacy, each.folder) for each in declared])
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


def declared_keys(migrations: Migrations) -> tuple[list[str], list[str], list[str]]:
    """Return the workloads, the log days, and what cannot be read of either."""
    catalogue = migrations.catalogue()
    sources, unreadable = readable_sources(
        [(each.migration.legacy, each.folder) for each in catalogue.declared.values()]
    )
    days = sorted({file.day for source in sources for file in source.files})
    return sorted(catalogue.declared), days, [*catalogue.broken.values(), *unreadable.values()]
