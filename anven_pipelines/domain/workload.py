"""What an asset of a workload was declared with, so that an edit of the migration file is noticed downstream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.canonical import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.spec import Migration

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "golden_dataset": ("legacy", "golden", "grading"),
    "target_answers": ("target",),
    "scores": ("grading", "contract"),
    "cost_model": ("legacy", "target", "cost", "sign_off"),
}
"""Asset to the sections of the migration file that decide what it holds."""


def declared_digest(migration: Migration, asset: str) -> str:
    """Return the digest of the sections that decide what the asset holds."""
    return digest_of(migration.model_dump(mode="json", include=set(SECTIONS[asset])))


def explain_stale(migration: Migration, asset: str, recorded: str | None) -> str | None:
    """Say how to mend an asset that was made from another version of the migration file; None if it was not."""
    if recorded == declared_digest(migration, asset):
        return None
    sections = ", ".join(SECTIONS[asset])
    return (
        f"workload {migration.workload!r}: the migration file changed in {sections} since {asset} was materialised; "
        f"materialise {asset} and what follows it again"
    )
