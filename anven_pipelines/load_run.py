"""What `anven load` does: register the file, put the served target under load, return the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anven_pipelines.chain import LOAD_STEPS
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.load_plan import target_server
from anven_pipelines.domain.load_reach import why_never
from anven_pipelines.ingest.log_source import log_source
from anven_pipelines.migrate import chain_of, of_kind, prepared
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.load_report import LoadReport
    from anven_pipelines.resources.migrations import Declared


def load_file(file: Path, *, home: Path, console: Console) -> LoadReport:
    """Run the load benchmark of one migration file, and what it rests on.

    Args:
        file: The migration file.
        home: Folder of local state.
        console: Gets progress and warnings.

    Raises:
        InvalidInput: the file is broken or declares nothing that can be measured, its sources cannot be read, or it is
            being migrated at this moment.
        AnvenError: a step failed.
    """
    with prepared(home) as definitions:
        declared = of_kind(definitions, "migrations", Migrations).register(file)
        _require_inputs(declared, file)
        of_kind(definitions, "state", StateStore).require_intact()
        with chain_of(declared, definitions, home=home, steps=LOAD_STEPS, console=console) as chain:
            return chain.measure_load(declared)


def _require_inputs(declared: Declared, file: Path) -> None:
    """Find what is missing before anything is asked.

    Raises:
        InvalidInput: nothing could be measured, the logs cannot be listed, or a key is not set.
    """
    migration = declared.migration
    if (reason := why_never(migration)) is not None:
        message = f"{file}: {reason}"
        raise InvalidInput(message)
    log_source(migration.legacy, declared.folder)
    if (server := target_server(migration)) is not None:
        api_key(server.api_key_env, of=repr(server.model))
    if migration.load is not None and (legacy := migration.load.legacy) is not None:
        api_key(legacy.api_key_env, of=repr(legacy.model or migration.legacy.model))
