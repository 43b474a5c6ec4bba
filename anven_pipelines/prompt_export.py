"""Writes the prompt that a verdict was given for to where the gateway reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from anven_pipelines.assets.materialization import read_document
from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.prompts import AdaptedPrompt
from anven_pipelines.domain.sign_off import SIGNED_OFF, sign_off_stream
from anven_pipelines.migrate import of_kind, prepared
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.resources.migrations import read_migration
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from pathlib import Path


class Exported(NamedTuple):
    """A prompt that was written for the gateway.

    Attributes:
        workload: Whose it is.
        version: Of the prompt.
        path: The file.
    """

    workload: str
    version: str
    path: Path


def export_prompt(file: Path, folder: Path, *, home: Path) -> Exported:
    """Write the prompt of a workload's newest verdict, which has to be GO, as `<workload>.json`.

    Args:
        file: Migration file of the workload.
        folder: What `anven gateway --prompts` names; made where it is missing.
        home: Folder of local state.

    Raises:
        InvalidMigration: the migration file is broken.
        MissingInput: there is no such verdict, or its prompt is not in the artifact store.
        UnavailableService: a store does not answer, or the file cannot be written.
    """
    workload = read_migration(file).migration.workload
    with prepared(home) as definitions:
        verdict = of_kind(definitions, "state", StateStore).latest(sign_off_stream(workload))
        if verdict is None or verdict.kind != SIGNED_OFF:
            found = "has no verdict" if verdict is None else "was not signed off: its newest verdict is not GO"
            message = (
                f"workload {workload!r} {found}, and a canary begins with one that is GO; run `anven migrate {file}`"
            )
            raise MissingInput(message)
        artifacts = of_kind(definitions, "artifacts", ArtifactStore)
        digest = verdict.payload.get("adapted_prompt")
        manifest = artifacts.load_manifest("adapted_prompt", workload, digest=digest) if digest else None
        if manifest is None:
            message = (
                f"the prompt that the verdict on {workload!r} was given for is not in the artifact store; restore it, "
                f"or reach a new verdict with `anven migrate {file}`"
            )
            raise MissingInput(message)
        document = read_document(artifacts, manifest)
    prompt = AdaptedPrompt.model_validate_json(document)
    DurableFolder(str(folder), {}).write(f"{workload}.json", document.encode())
    return Exported(workload, prompt.version, folder / f"{workload}.json")
