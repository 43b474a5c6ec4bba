"""The logged calls that a step reads: all days of them, or those of one workload's source."""

from anven_pipelines.domain.errors import InvalidInput, MissingInput
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.ingest.log_source import source_key
from anven_pipelines.resources.migrations import Declared


def all_days(request_log: dict[str, Manifest]) -> Manifest:
    """Join the days' manifests into one, days in order.

    Raises:
        MissingInput: no day has been materialised.
    """
    if not request_log:
        message = "no partition of request_log is materialised; materialise request_log for the days of your logs first"
        raise MissingInput(message)
    parts = tuple(part for day in sorted(request_log) for part in request_log[day].parts)
    return Manifest(
        table=REQUEST_LOG.name,
        columns={name: str(dtype) for name, dtype in REQUEST_LOG.schema.items()},
        parts=parts,
        inputs={day: manifest.digest for day, manifest in sorted(request_log.items())},
    )


def calls_of(request_log: dict[str, Manifest], declared: Declared) -> Manifest:
    """Keep the parts that came from the source which the migration declares.

    Raises:
        InvalidInput: no materialised day holds any, as where its files hold none, or none that can be read.
    """
    logged = all_days(request_log)
    key = source_key(declared.migration.legacy, declared.folder)
    parts = tuple(part for part in logged.parts if part.labels.get("source") == key)
    if not any(part.rows for part in parts):
        message = (
            f"{declared.file}: legacy.logs {declared.migration.legacy.logs} has no calls in request_log; calls that "
            "can be read are needed: add some where the files hold none, mend those that request_log's checks name, or "
            "materialise request_log for the days of these files"
        )
        raise InvalidInput(message)
    return logged.model_copy(update={"parts": parts})
